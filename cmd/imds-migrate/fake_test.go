//go:build unix

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// stubScript is az and kubectl. It sends its name and arguments to the test, and behaves as the test answers:
// an exit code on the first line, and what it writes. It is a shell script since the test runs hundreds of
// commands, and starting a program with the race detector as often takes minutes.
const stubScript = `#!/bin/sh
printf '%s\0' "${0##*/}" "$@" >"${0%/*}/request"
{ read -r code; if [ "$code" = 0 ]; then cat; else cat >&2; fi; } <"${0%/*}/response"
exit "$code"
`

// serveStubs puts az and kubectl in front of PATH. They run one at a time, and the test must not change the
// state meanwhile.
func serveStubs(t *testing.T, state *stubState) {
	t.Helper()
	dir := t.TempDir()
	request, response := filepath.Join(dir, "request"), filepath.Join(dir, "response")
	for _, err := range []error{syscall.Mkfifo(request, 0o600), syscall.Mkfifo(response, 0o600),
		os.WriteFile(filepath.Join(dir, "az"), []byte(stubScript), 0o700), os.WriteFile(filepath.Join(dir, "kubectl"), []byte(stubScript), 0o700)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	ended := make(chan error)
	go func() {
		for {
			text, err := os.ReadFile(request) // up to the end of one command's request
			if err != nil || len(text) == 0 {
				ended <- err
				return
			}
			args := strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")
			if err := os.WriteFile(response, []byte(state.answer(args[0], args[1:])), 0o600); err != nil {
				ended <- err
				return
			}
		}
	}()
	t.Cleanup(func() {
		err := os.WriteFile(request, nil, 0o600) // an empty request ends the goroutine
		if err := errors.Join(err, <-ended); err != nil {
			t.Error(err)
		}
	})
}

// answer is the exit code and the output of a command.
func (s *stubState) answer(name string, args []string) string {
	if name == "kubectl" {
		s.Kubectl = append(s.Kubectl, strings.Join(args, " "))
		return "0\n"
	}
	out, err := s.az(args)
	if err != nil {
		return fmt.Sprintf("1\nERROR: %v\n", err)
	}
	return "0\n" + out + "\n"
}

// stubState is what exists in Azure and in the cluster.
type stubState struct {
	// SignedOut is whether az login has not run.
	SignedOut bool
	// Identities has the client ID of each identity by its resource ID in lower case, and Applications is
	// the client IDs of app registrations.
	Identities   map[string]string
	Applications []string
	// Credentials are by resource ID or client ID.
	Credentials map[string][]credential
	// Kubectl are the commands of kubectl.
	Kubectl []string
}

type credential struct {
	Name      string   `json:"name"`
	Issuer    string   `json:"issuer"`
	Subject   string   `json:"subject"`
	Audiences []string `json:"audiences"`
}

// arguments splits the words of a command from its flags.
func arguments(args []string) (command string, flags map[string]string) {
	flags = map[string]string{}
	var words []string
	for i := 0; i < len(args); i++ {
		if strings.HasPrefix(args[i], "--") && i+1 < len(args) {
			flags[args[i]] = args[i+1]
			i++
			continue
		}
		words = append(words, args[i])
	}
	return strings.Join(words, " "), flags
}

// az behaves as az does for the commands of a plan. It refuses what Azure refuses.
func (s *stubState) az(args []string) (string, error) {
	if s.SignedOut {
		return "", errors.New("Please run 'az login' to setup account.")
	}
	command, f := arguments(args)
	id := strings.ToLower(fmt.Sprintf("/subscriptions/%s/resourceGroups/%s/providers/Microsoft.ManagedIdentity/userAssignedIdentities/%s", or(f["--subscription"], "99999999-9999-4999-8999-999999999999"), f["--resource-group"], f["--identity-name"]))
	switch command {
	case "identity list":
		return s.list(f)
	case "identity federated-credential list", "identity federated-credential create":
		if s.Identities[id] == "" {
			return "", fmt.Errorf("(ResourceNotFound) %s was not found", id)
		}
		if strings.HasSuffix(command, "list") {
			return marshal(append([]credential{}, s.Credentials[id]...))
		}
		return "", s.create(id, credential{f["--name"], f["--issuer"], f["--subject"], []string{f["--audiences"]}})
	case "ad app federated-credential list", "ad app federated-credential create":
		if !slices.Contains(s.Applications, f["--id"]) {
			return "", fmt.Errorf("application %s does not exist", f["--id"])
		}
		if strings.HasSuffix(command, "list") {
			return marshal(append([]credential{}, s.Credentials[f["--id"]]...))
		}
		var c credential
		if err := json.Unmarshal([]byte(f["--parameters"]), &c); err != nil {
			return "", err
		}
		return "", s.create(f["--id"], c)
	}
	return "", fmt.Errorf("%q is misspelled or not recognized by the system", command)
}

func marshal(value any) (string, error) {
	text, err := json.Marshal(value)
	return string(text), err
}

func or(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

// list is az identity list with the query of a plan.
func (s *stubState) list(f map[string]string) (string, error) {
	m := regexp.MustCompile(`^\[\?clientId=='([0-9a-f-]{36})'\]\.id$`).FindStringSubmatch(f["--query"])
	if m == nil {
		return "", fmt.Errorf("invalid jmespath_type value: %q", f["--query"])
	}
	ids := []string{}
	for id, client := range s.Identities {
		if client == m[1] {
			ids = append(ids, id)
		}
	}
	if f["--output"] == "tsv" {
		return strings.Join(ids, "\n"), nil
	}
	return marshal(ids)
}

// create writes a credential, or replaces the one of this name, as Azure does.
func (s *stubState) create(id string, c credential) error {
	switch {
	case !regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9-_]{2,119}$`).MatchString(c.Name):
		return fmt.Errorf("(BadRequest) the name %q is not valid", c.Name)
	case len(c.Audiences) != 1 || c.Audiences[0] != "api://AzureADTokenExchange" || !strings.HasPrefix(c.Issuer, "https://") || !strings.HasPrefix(c.Subject, "system:serviceaccount:"):
		return fmt.Errorf("(BadRequest) %+v", c)
	}
	for i, other := range s.Credentials[id] {
		switch {
		case other.Name == c.Name:
			s.Credentials[id][i] = c
			return nil
		case other.Issuer == c.Issuer && other.Subject == c.Subject:
			return fmt.Errorf("(Conflict) Issuer and subject combination already exists for this Managed Identity")
		}
	}
	if len(s.Credentials[id]) >= 20 {
		return fmt.Errorf("(BadRequest) too many Federated Identity Credentials")
	}
	s.Credentials[id] = append(s.Credentials[id], c)
	return nil
}
