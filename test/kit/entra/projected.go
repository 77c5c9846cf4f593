package entra

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Names that the kubelet and the workload identity webhook use.
const (
	// TokenFileName is the projected token's name in its volume.
	TokenFileName = "azure-identity-token"

	dataDirName    = "..data"
	newDataDirName = "..data_tmp"
	timestampName  = "..2006_01_02_15_04_05."
)

// renewAt is the fraction of a token's lifetime after which the kubelet renews it.
const renewAt = 0.8

// Owner is a user and a group.
type Owner struct{ UID, GID int }

// ProjectedTokenConfig configures a projected token.
type ProjectedTokenConfig struct {
	// Dir is the volume: an existing directory that the reader can enter.
	Dir string

	// Subject is the token's sub.
	Subject string

	// Audience is the token's aud. Empty: DefaultAudience.
	Audience string

	// Lifetime is the lifetime of each token. Zero: one hour.
	Lifetime time.Duration

	// Mode is the mode of the file. Zero: 0644, which the kubelet uses if it does not know
	// which user reads the file.
	Mode fs.FileMode

	// Owner is the owner of the file, as fsGroup and runAsUser set it. Setting it needs
	// root. Nil: the caller.
	Owner *Owner
}

// ProjectedToken is a service-account token in a volume, written as the kubelet does: each
// version is in a new directory, and a rename replaces the symbolic link ..data to it, so
// that a reader finds a complete token at any time.
type ProjectedToken struct {
	server *Server
	cfg    ProjectedTokenConfig

	mu     sync.Mutex // guards the fields below, and the volume
	token  string
	expiry time.Time
}

// ProjectToken writes a first token. Run or Renew replace it.
func (s *Server) ProjectToken(cfg ProjectedTokenConfig) (*ProjectedToken, error) {
	if cfg.Lifetime == 0 {
		cfg.Lifetime = federatedLifetime
	}
	if cfg.Mode == 0 {
		cfg.Mode = 0o644
	}
	p := &ProjectedToken{server: s, cfg: cfg}
	if err := p.Renew(); err != nil {
		return nil, err
	}
	return p, nil
}

// Path returns the value for AZURE_FEDERATED_TOKEN_FILE.
func (p *ProjectedToken) Path() string { return filepath.Join(p.cfg.Dir, TokenFileName) }

// Token returns the token that was written last, for tests that search for this secret.
func (p *ProjectedToken) Token() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.token
}

// Expiry returns the expiry of the last token that Renew wrote.
func (p *ProjectedToken) Expiry() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.expiry
}

// Renew writes a new token.
func (p *ProjectedToken) Renew() error {
	now := p.server.now()
	expiry := now.Add(p.cfg.Lifetime)
	token, err := p.server.signFederated(p.server.completeClaims(Claims{
		Subject: p.cfg.Subject, Audience: p.cfg.Audience, IssuedAt: now, Expiry: expiry,
	}))
	if err != nil {
		return fmt.Errorf("sign the projected token: %w", err)
	}
	if err := p.Write(token); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.expiry = expiry
	return nil
}

// Write writes content in place of the token, in the same way, for tests of bad tokens.
func (p *ProjectedToken) Write(content string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.swap(content); err != nil {
		return fmt.Errorf("write the projected token: %w", err)
	}
	p.token = content
	return nil
}

// Run renews the token each time that 80 % of its lifetime is over. When ctx is done, it
// returns nil.
func (p *ProjectedToken) Run(ctx context.Context) error {
	for {
		issued := p.Expiry().Add(-p.cfg.Lifetime)
		renew := issued.Add(time.Duration(renewAt * float64(p.cfg.Lifetime)))
		timer := time.NewTimer(renew.Sub(p.server.now()))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		if err := p.Renew(); err != nil {
			return err
		}
	}
}

// swap does the steps of the kubelet's atomic writer: it writes a new directory, replaces
// ..data by a rename, and then removes the old directory.
func (p *ProjectedToken) swap(content string) error {
	dataLink := filepath.Join(p.cfg.Dir, dataDirName)
	old, err := os.Readlink(dataLink)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	versionDir, err := p.writeVersion(content)
	if err != nil {
		return err
	}
	newLink := filepath.Join(p.cfg.Dir, newDataDirName)
	if err := os.Symlink(filepath.Base(versionDir), newLink); err != nil {
		return err
	}
	if err := os.Rename(newLink, dataLink); err != nil {
		return err
	}
	err = os.Symlink(filepath.Join(dataDirName, TokenFileName), p.Path())
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if old == "" {
		return nil
	}
	return os.RemoveAll(filepath.Join(p.cfg.Dir, old))
}

// writeVersion writes the content to a new directory whose name has the current time.
func (p *ProjectedToken) writeVersion(content string) (dir string, err error) {
	dir, err = os.MkdirTemp(p.cfg.Dir, p.server.now().Format(timestampName))
	if err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // MkdirTemp gives access to the owner only
		return "", err
	}
	file := filepath.Join(dir, TokenFileName)
	if err := os.WriteFile(file, []byte(content), p.cfg.Mode); err != nil {
		return "", err
	}
	if err := os.Chmod(file, p.cfg.Mode); err != nil { // WriteFile applies the umask
		return "", err
	}
	if p.cfg.Owner == nil {
		return dir, nil
	}
	return dir, os.Chown(file, p.cfg.Owner.UID, p.cfg.Owner.GID)
}
