package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/flagenv"
	"imds-oidc-proxy/internal/imds"
)

const (
	instanceFlag       = "instance-metadata"
	instanceFieldsFlag = "instance-metadata-fields"
)

// instanceField is a value of instance metadata that is not in the file.
type instanceField struct{ path, value string }

// parseInstanceField parses PATH=VALUE. Package imds validates the path.
func parseInstanceField(s string) (instanceField, error) {
	path, value, ok := strings.Cut(s, "=")
	if !ok || path == "" {
		return instanceField{}, azure.Invalid(s, "must be PATH=VALUE, such as compute/name=node-1")
	}
	return instanceField{path, value}, nil
}

// checkInstance checks the flags of instance metadata.
func (c *config) checkInstance() error {
	if c.instanceFile == "" && len(c.instanceFields) > 0 {
		return flagenv.Required([]string{instanceFlag}, " with --"+instanceFieldsFlag)
	}
	given := map[string]bool{}
	for _, f := range c.instanceFields {
		if given[f.path] {
			return flagenv.Errorf(instanceFieldsFlag, "has %q twice", f.path)
		}
		given[f.path] = true
	}
	return nil
}

// readInstance reads the document of instance metadata, if there is one.
func (c *config) readInstance() error {
	if c.instanceFile == "" || c.instance != nil {
		return nil
	}
	fields := make(map[string]string, len(c.instanceFields))
	for _, f := range c.instanceFields {
		fields[f.path] = f.value
	}
	document, err := readRegular(c.instanceFile, imds.MaxInstance)
	if err == nil {
		c.instance, err = imds.ParseInstance(document, fields)
	}
	if err != nil {
		return configErrorf("--%s (%s) %s: %w", instanceFlag, variable(instanceFlag), c.instanceFile, err)
	}
	return nil
}

// readRegular reads a file, and one byte more than limit at most. It refuses everything but
// regular files: reading a named pipe may hang.
func readRegular(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, withoutPath(err)
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("must be a regular file")
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, withoutPath(err)
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err != nil {
		return nil, withoutPath(err)
	}
	return content, nil
}

// withoutPath removes the path from an error about a file, because the caller names it.
func withoutPath(err error) error {
	if failed, ok := errors.AsType[*os.PathError](err); ok {
		return fmt.Errorf("cannot be read: %w", failed.Err)
	}
	return err
}
