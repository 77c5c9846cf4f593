package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/tools/clientcmd"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/flagenv"
	"imds-oidc-proxy/internal/output"
	"imds-oidc-proxy/internal/plan"
	"imds-oidc-proxy/internal/survey"
)

const planUsage = `Usage: imds-migrate plan [flags]
       imds-migrate plan --filename=FILE [flags]

imds-migrate plan lists how each workload of a cluster gets Azure tokens today, and what has to be
created and changed for it. It reads a cluster, or files that kubectl has exported, and changes
nothing. docs/plan.md explains its codes.
%s
Exit codes:
   0  nothing to do
   1  could not look: no cluster, pods cannot be read, a file is cut off; or nothing to do was
      found, but something could not be read
   2  invalid flag or command
   3  there is work to do
   4  something is blocked, or waits for a choice
`

// planOptions is the command line of plan.
type planOptions struct {
	files   []string // empty: a cluster
	cluster clusterFlags
	all     bool

	output   output.Config
	exitZero bool
	write    string // a directory; empty: none

	survey   survey.Config
	plan     plan.Options
	known    []plan.Known
	choices  []choice
	selector string
	azure    bool
}

// choice is a value of --choose.
type choice struct {
	key string
	id  azure.ClientID
}

// parseChoice parses NAMESPACE/ACCOUNT=CLIENT_ID or NAMESPACE/KIND/NAME=CLIENT_ID.
func parseChoice(text string) (choice, error) {
	key, value, _ := strings.Cut(text, "=")
	parts := strings.Split(key, "/")
	if len(parts) < 2 || len(parts) > 3 || slices.Contains(parts, "") {
		return choice{}, azure.Invalid(text, "must be NAMESPACE/SERVICE_ACCOUNT=CLIENT_ID or NAMESPACE/KIND/NAME=CLIENT_ID, such as shop/deploy/app=11111111-1111-4111-8111-111111111111")
	}
	id, err := azure.ParseClientID(value)
	return choice{key, id}, err
}

// parsePlan parses the command line of plan. For help it writes to stdout and returns pflag.ErrHelp.
func parsePlan(args []string, stdout io.Writer) (*planOptions, error) {
	o := new(planOptions)
	flags := flagenv.New("imds-migrate plan", nil)
	o.addFlags(flags)
	flags.Usage = func() { fmt.Fprintf(stdout, planUsage, flags.Usages()) }
	if err := flags.Parse(args, nil); err != nil {
		return nil, err
	}
	return o, o.validate(flags.FlagSet)
}

func (o *planOptions) addFlags(set *flagenv.Set) {
	flags := set.FlagSet
	o.output.Format = "table"
	set.Group("Input")
	flags.StringSliceVarP(&o.files, "filename", "f", nil, "`file`, directory or - (standard input) with exported objects, in place of a cluster; repeatable")
	flags.BoolVar(&o.survey.Secrets, "read-secrets", false, "also read Secrets; no value is printed")
	flags.BoolVar(&o.azure, "azure", false, "count the federated credentials in Azure with az, which only reads")
	set.Group("Output")
	flagenv.VarP(flags, &o.output.Format, "output", "o", flagenv.OneOf(output.Formats...), "`format`: "+strings.Join(output.Formats, ", "))
	flagenv.Var(flags, &o.output.Provider, "provider-version", output.ParseProvider, "`version` of azurerm (with --output=terraform) or of Crossplane's provider; default: the newest")
	flags.StringVar(&o.output.ResourceGroup, "resource-group", "", "with --output=bicep: the resource `group` of the identities, NAME or SUBSCRIPTION/NAME")
	flags.StringVar(&o.write, "write", "", "also write a kustomize component with the changes of fields and the new service accounts into this `directory`")
	flags.BoolVar(&o.exitZero, "exit-zero", false, "exit with 0 in place of 3 and 4")
	set.Group("Workloads")
	flags.StringVarP(&o.selector, "selector", "l", "", "only workloads whose own labels match this `selector`")
	flags.BoolVarP(&o.all, "all-namespaces", "A", false, "all namespaces but the system's, which is the default")
	set.Group("Answers")
	flagenv.List(flags, &o.choices, "choose", parseChoice, "`CHOICE` of an identity where several match: NAMESPACE/SERVICE_ACCOUNT=CLIENT_ID or NAMESPACE/KIND/NAME=CLIENT_ID; repeatable, the first is the default")
	flagenv.List(flags, &o.known, "identity", plan.ParseKnown, "`IDENTITY` that the cluster does not describe: RESOURCE_ID=CLIENT_ID or OBJECT_ID=CLIENT_ID; repeatable")
	flags.StringVar(&o.plan.ClusterName, "cluster-name", "", "`name` of the cluster in names of federated credentials; default: that of the kubeconfig")
	flags.StringVar(&o.plan.Issuer, "issuer", "", "`URL` of the cluster's OIDC issuer; default: what the cluster says")
	flags.StringVar(&o.plan.ServerVersion, "kubernetes-version", "", "`version` of Kubernetes; default: what the cluster says")
	flagenv.Var(flags, &o.plan.TenantID, "tenant-id", flagenv.Optional(azure.ParseTenant), "`tenant` for annotations of service accounts")
	flags.StringVar(&o.plan.Audience, "audience", azure.Audience, "`audience` of the federated credentials")
	o.cluster.addFlags(set)
}

func (o *planOptions) validate(flags *pflag.FlagSet) (err error) {
	namespace := o.cluster.namespace()
	switch {
	case o.all && namespace != "":
		return errors.New("--all-namespaces and --namespace must not be set together")
	case o.output.ResourceGroup != "" && o.output.Format != "bicep":
		return errors.New("--resource-group requires --output=bicep")
	case o.output.Provider != "" && o.output.Format != "terraform" && o.output.Format != "crossplane":
		return errors.New("--provider-version requires --output=terraform or --output=crossplane")
	case o.plan.Issuer != "" && !strings.HasPrefix(o.plan.Issuer, "https://"):
		return flagenv.Errorf("issuer", "%q: must be an https URL", o.plan.Issuer)
	case len(o.files) > 0 && o.plan.Issuer == "" && output.CreatesCredentials(o.output.Format):
		return flagenv.Required([]string{"issuer"}, " with --output="+o.output.Format+" and --filename: the files do not contain it")
	case slices.Index(o.files, stdinName) >= 0 && slices.Index(o.files, stdinName) != len(o.files)-1-slices.Index(reversed(o.files), stdinName):
		return errors.New("--filename must not be - twice: standard input can be read once")
	}
	if err := o.clusterOnly(flags); err != nil {
		return err
	}
	if o.plan.Selector, err = labels.Parse(o.selector); err != nil {
		return flagenv.Errorf("selector", "%q: must be a label selector, such as app=web,tier!=batch", o.selector)
	}
	o.survey.Namespace, o.plan.Namespace = namespace, namespace
	o.plan.Identities, o.plan.Secrets, o.plan.Azure = o.known, o.survey.Secrets, o.azure
	o.plan.Audience = cmp.Or(o.plan.Audience, azure.Audience)
	o.plan.Choices = map[string][]azure.ClientID{}
	for _, c := range o.choices {
		o.plan.Choices[c.key] = append(o.plan.Choices[c.key], c.id)
	}
	return nil
}

// clusterOnly refuses flags that choose a cluster together with files.
func (o *planOptions) clusterOnly(flags *pflag.FlagSet) error {
	for _, name := range append([]string{"kubeconfig", clientcmd.FlagContext, clientcmd.FlagClusterName, clientcmd.FlagAuthInfoName, clientcmd.FlagAPIServer}, rareFlags...) {
		if len(o.files) > 0 && flags.Changed(name) {
			return fmt.Errorf("--%s has no effect with --filename, which reads no cluster", name)
		}
	}
	return nil
}

func reversed(list []string) []string {
	list = slices.Clone(list)
	slices.Reverse(list)
	return list
}
