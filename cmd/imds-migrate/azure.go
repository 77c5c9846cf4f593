package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"imds-oidc-proxy/internal/plan"
)

// countInAzure lists the federated credentials of the plan's identities, with the person's own login. It
// runs commands of az that only read.
func (o *planOptions) countInAzure(ctx context.Context, p *plan.Plan, progress *progress) {
	o.plan.Existing, o.plan.Uncounted = map[string][]plan.Existing{}, map[string]string{}
	if _, err := exec.LookPath("az"); err != nil {
		o.plan.Uncounted["federated credentials in Azure"] = "az is not installed"
		return
	}
	for _, ref := range p.Refs() {
		progress.show("federated credentials of " + ref.String())
		list, err := o.credentialsOf(ctx, ref)
		if err != nil {
			o.plan.Uncounted["federated credentials of "+ref.String()] = err.Error()
			continue
		}
		o.plan.Existing[string(ref.ClientID)] = list
	}
}

// credentialsOf lists the federated credentials of one identity.
func (o *planOptions) credentialsOf(ctx context.Context, ref plan.Ref) (list []plan.Existing, err error) {
	if ref.Kind == plan.KindApplication {
		err = az(ctx, &list, "ad", "app", "federated-credential", "list", "--id", string(ref.ClientID))
		return list, err
	}
	resource := ref.ResourceID
	if resource == "" {
		if resource, err = o.find(ctx, ref); err != nil {
			return nil, err
		}
	}
	id, ok := plan.ParseResourceID(resource)
	if !ok {
		return nil, fmt.Errorf("az returned the resource ID %q", resource)
	}
	err = az(ctx, &list, "identity", "federated-credential", "list", "--resource-group", id.Group, "--identity-name", id.Name, "--subscription", id.Subscription)
	return list, err
}

// find looks up the resource ID of an identity in the current subscription, for this plan too.
func (o *planOptions) find(ctx context.Context, ref plan.Ref) (string, error) {
	var ids []string
	if err := az(ctx, &ids, "identity", "list", "--query", "[?clientId=='"+string(ref.ClientID)+"'].id"); err != nil {
		return "", err
	}
	if len(ids) != 1 {
		return "", errors.New("the current subscription has no identity with this client ID: az account set, or --identity=<RESOURCE_ID>=" + string(ref.ClientID))
	}
	known, err := plan.ParseKnown(ids[0] + "=" + string(ref.ClientID))
	if err == nil {
		o.plan.Identities = append(o.plan.Identities, known)
	}
	return ids[0], err
}

// az runs a command of az and decodes its output. The error is one line.
func az(ctx context.Context, into any, args ...string) error {
	cmd := exec.CommandContext(ctx, "az", append(args, "--output", "json")...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("az %s: %s", strings.Join(args[:2], " "), firstLine(stderr.String(), err))
	}
	if err := json.Unmarshal(stdout.Bytes(), into); err != nil {
		return fmt.Errorf("az %s: invalid output: %w", strings.Join(args[:2], " "), err)
	}
	return nil
}

// maxMessage is the length of the longest message of az that is repeated.
const maxMessage = 200

// firstLine returns the first line of a message, or an error if there is none.
func firstLine(message string, err error) string {
	for line := range strings.Lines(message) {
		if line = strings.TrimSpace(line); line != "" {
			return oneLine(line[:min(len(line), maxMessage)])
		}
	}
	return err.Error()
}
