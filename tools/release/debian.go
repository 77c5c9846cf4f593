package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// lockFile has the Debian packages of iptables, in the form of sha256sum. Their licenses are GPL
// and LGPL, whose texts are in base-files.
const lockFile = "tools/release/debian.lock"

// debianMirror is where apt finds the packages. It has the newest version of each package only.
// The environment variable DEBIAN_MIRROR names another one, such as a snapshot of an earlier day.
const debianMirror = "http://deb.debian.org/debian"

// deb is a line of the lock file.
type deb struct{ sum, name, version, arch string }

func (d deb) file() string { return d.name + "_" + d.version + "_" + d.arch + ".deb" }

var lockLine = regexp.MustCompile(`^([0-9a-f]{64})  ([a-z0-9.+-]+)_([A-Za-z0-9.+~-]+)_(amd64|arm64)\.deb$`)

func parseLock(text string) ([]deb, error) {
	var all []deb
	for line := range strings.Lines(text) {
		m := lockLine.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			return nil, fmt.Errorf("%s: %q is not a line of sha256sum with the name of a Debian package", lockFile, strings.TrimSpace(line))
		}
		all = append(all, deb{m[1], m[2], m[3], m[4]})
	}
	return all, nil
}

// fetchDebian downloads the locked packages with apt-get, which checks nothing but what the lock
// file says: the sums are in the repository, so that neither the mirror nor the keys of the machine
// are trusted. It changes nothing on the machine: apt's state is in .cache/debian.
func (r *release) fetchDebian(ctx context.Context) error {
	text, err := os.ReadFile(filepath.Join(r.root, lockFile))
	if err != nil {
		return err
	}
	if r.debs, err = parseLock(string(text)); err != nil {
		return err
	}
	var wanted []deb
	for _, on := range r.nodes() {
		var missing []string
		for _, d := range r.debs {
			if d.arch != on.arch {
				continue
			}
			wanted = append(wanted, d)
			if r.checkDeb(d) != nil {
				missing = append(missing, d.name+"="+d.version)
			}
		}
		if len(missing) == 0 {
			continue
		}
		if err := r.apt(ctx, on.arch, missing); err != nil {
			return fmt.Errorf("%w; another mirror: DEBIAN_MIRROR=URL; the newest packages: go -C tools/release run . --lock-debian", err)
		}
	}
	for _, d := range wanted {
		if err := r.checkDeb(d); err != nil {
			return err
		}
	}
	return nil
}

func (r *release) debianDir() string { return filepath.Join(r.root, ".cache/debian") }

func (r *release) checkDeb(d deb) error {
	content, err := os.ReadFile(filepath.Join(r.debianDir(), d.file()))
	if err != nil {
		return err
	}
	if sum := sha256.Sum256(content); hex.EncodeToString(sum[:]) != d.sum {
		return fmt.Errorf("%s has the SHA-256 %x, and %s says %s", d.file(), sum, lockFile, d.sum)
	}
	return nil
}

// apt downloads packages of an architecture into debianDir, with a state of its own.
func (r *release) apt(ctx context.Context, arch string, packages []string) error {
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("apt-get not found: it downloads the Debian packages of %s", iptablesImage)
	}
	state := filepath.Join(r.debianDir(), "apt-"+arch)
	for _, dir := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(state, dir), 0o755); err != nil {
			return err
		}
	}
	mirror := debianMirror
	if m := os.Getenv("DEBIAN_MIRROR"); m != "" {
		mirror = m
	}
	sources := filepath.Join(state, "sources.list")
	if err := writeFile(sources, []byte("deb [trusted=yes check-valid-until=no] "+mirror+" bookworm main\n")); err != nil {
		return err
	}
	// The last one: apt does not become the user _apt, which may not write here.
	options := []string{"-q", "-o=APT::Architecture=" + arch, "-o=APT::Architectures=" + arch, "-o=Dir::State=" + state, "-o=Dir::State::lists=" + state + "/lists",
		"-o=Dir::Cache=" + state + "/cache", "-o=Dir::Etc::sourcelist=" + sources, "-o=Dir::Etc::sourceparts=/dev/null", "-o=Dir::State::status=/dev/null",
		"-o=Acquire::Languages=none", "-o=APT::Update::Error-Mode=any", "-o=APT::Sandbox::User="}
	env := append(os.Environ(), "LC_ALL=C")
	if _, err := output(ctx, r.debianDir(), env, "apt-get", append(options, "update")...); err != nil {
		return err
	}
	_, err := output(ctx, r.debianDir(), env, "apt-get", append(append(options, "download"), packages...)...)
	return err
}

// lockDebian writes the newest version of each package into the lock file.
func lockDebian(ctx context.Context, repository string) error {
	root, err := filepath.Abs(repository)
	if err != nil {
		return err
	}
	r := &release{root: root}
	file := filepath.Join(r.root, lockFile)
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	locked, err := parseLock(string(text))
	if err != nil {
		return err
	}
	if err := os.RemoveAll(r.debianDir()); err != nil {
		return err
	}
	for _, on := range nodes {
		var names []string
		for _, d := range locked {
			if d.arch == on.arch {
				names = append(names, d.name)
			}
		}
		if err := r.apt(ctx, on.arch, names); err != nil {
			return err
		}
	}
	files, err := filepath.Glob(filepath.Join(r.debianDir(), "*.deb"))
	if err != nil {
		return err
	}
	var out bytes.Buffer
	for _, f := range files {
		content, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		fmt.Fprintf(&out, "%x  %s\n", sha256.Sum256(content), filepath.Base(f))
	}
	return writeFile(file, out.Bytes())
}

// debianFile matches what proxy-init needs of the packages: iptables with both backends, all of its
// extensions, since it also has to read other programs' rules, its libraries, and the licenses.
var debianFile = regexp.MustCompile(`^(?:` + strings.Join([]string{
	`usr/sbin/(?:xtables-(?:nft|legacy)-multi|iptables-(?:nft|legacy)(?:-save|-restore)?)`,
	`usr/lib/[a-z0-9_]+-linux-gnu/(?:xtables/lib(?:xt|ipt)_\w+\.so|lib\w+\.so[.\d]+)`,
	`lib(?:64)?/(?:[a-z0-9_]+-linux-gnu/)?(?:ld-linux-[a-z0-9-]+\.so\.\d|lib(?:c|m)\.so\.6)`,
	`usr/share/doc/[a-z0-9.+-]+/copyright`,
	`usr/share/common-licenses/L?GPL-[\d.]+`,
}, "|") + `)$`)

// addDebian adds iptables of the locked packages.
func (r *release) addDebian(ctx context.Context, files tree, arch string) error {
	var list bytes.Buffer
	fmt.Fprintf(&list, "The packages of Debian below are in this image, unchanged but for files that are left out. Their licenses\n"+
		"are in /usr/share/doc/PACKAGE/copyright: iptables GPL-2, libc6 LGPL-2.1, and others. The source of each\n"+
		"package is at https://snapshot.debian.org/binary/PACKAGE/, and apt-get source PACKAGE=VERSION downloads it.\n\n"+
		"Written offer: for at least three years from the day on which you got this image, whoever publishes it gives\n"+
		"anyone who asks a complete machine-readable copy of the source of these packages, for no more than the cost\n"+
		"of physically performing the distribution, under the licenses named above.\n\n")
	for _, d := range r.debs {
		if d.arch != arch {
			continue
		}
		fmt.Fprintf(&list, "%s %s\n", d.name, d.version)
		content, err := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", filepath.Join(r.debianDir(), d.file())).Output()
		if err != nil {
			return fmt.Errorf("dpkg-deb --fsys-tarfile %s: %w", d.file(), err)
		}
		if err := files.addTar(content, debianFile); err != nil {
			return fmt.Errorf("%s: %w", d.file(), err)
		}
	}
	files["licenses/DEBIAN"] = file{content: list.Bytes()}
	return nil
}

// addTar adds the files and links of an archive whose names match.
func (t tree) addTar(content []byte, names *regexp.Regexp) error {
	for reader := tar.NewReader(bytes.NewReader(content)); ; {
		h, err := reader.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(h.Name, "./")
		if !names.MatchString(name) {
			continue
		}
		switch h.Typeflag {
		case tar.TypeReg:
			content, err := io.ReadAll(reader)
			if err != nil {
				return err
			}
			t[name] = file{content: content, executable: h.Mode&0o111 != 0}
		case tar.TypeSymlink:
			t[name] = file{link: h.Linkname}
		default:
			return fmt.Errorf("%s is neither a file nor a symbolic link", name)
		}
	}
}

// debianSBOM returns the packages as components of a software bill of materials.
func (r *release) debianSBOM(arch string) ([]byte, error) {
	type component struct {
		Type    string `json:"type"`
		Ref     string `json:"bom-ref"`
		Name    string `json:"name"`
		Version string `json:"version"`
		PURL    string `json:"purl"`
		Hashes  []any  `json:"hashes"`
	}
	var components []component
	for _, d := range r.debs {
		if d.arch == arch {
			purl := "pkg:deb/debian/" + d.name + "@" + d.version + "?arch=" + arch
			components = append(components, component{"library", purl, d.name, d.version, purl, []any{map[string]string{"alg": "SHA-256", "content": d.sum}}})
		}
	}
	slices.SortFunc(components, func(a, b component) int { return strings.Compare(a.Name, b.Name) })
	return jsonOf(map[string]any{
		"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1,
		"metadata":   map[string]any{"component": map[string]string{"type": "container", "name": iptablesImage, "version": r.version}},
		"components": components,
	})
}
