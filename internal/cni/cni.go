// Package cni is the CNI plugin that installs the redirect in the network namespaces of pods that
// ask for it. A container runtime runs it as the last plugin of its list, when it has set up the
// network of a new pod, and before it starts the pod's first container.
//
//	os.Exit(cni.Run(cni.Redirect{Install: netrules.InstallIn, Check: netrules.CheckIn}, "imds-cni v1.0.0"))
//
// The runtime passes the pod's annotations, so that the plugin needs no API server and no
// credentials. A pod asks with the annotation of internal/cnirequest. For a pod without it, the
// plugin does nothing but pass on the result of the plugin before it.
//
// # Security considerations
//
// The plugin runs as root on the node, with every capability of the runtime. What it uses of a
// pod is that one annotation, whose author may be hostile, and the network namespace that the
// runtime has made for the pod. It changes rules in that namespace only, and refuses the node's.
// Text of an annotation appears in errors, quoted and shortened, and never in a path or command.
//
// The plugin fails closed: if it cannot tell whether a pod asks for the redirect, or cannot
// install it, the runtime does not start the pod, and the pod's events have the reason.
package cni

import (
	"errors"
	"os"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"imds-oidc-proxy/internal/netrules"
)

// Redirect is how the plugin installs and checks the rules in a network namespace:
// [netrules.InstallIn] and [netrules.CheckIn]. Tests use others.
type Redirect struct {
	Install, Check func(netns *os.File, config netrules.Config) error
}

// Codes of errors, which the CNI specification reserves for plugins from 100 on.
const (
	codeRequest  = 100 // the pod's annotation is invalid, or asks for what this node does not allow
	codeRedirect = 101 // the rules could not be installed, or are not as requested
)

// Run runs the command of the environment variable CNI_COMMAND, and returns the exit code. It
// reads the configuration from standard input, and writes the result, or an error in the format
// of the CNI specification, to standard output. Package skel uses this process's own. about is
// the name and the version of the plugin.
func Run(redirect Redirect, about string) int {
	// The runtime must be able to delete each pod, whatever became of its namespace, of its
	// annotations and of the list, and the rules end with the namespace. So there is nothing
	// to do, and nothing that may fail.
	if os.Getenv("CNI_COMMAND") == "DEL" {
		return 0
	}
	p := &plugin{redirect: redirect}
	err := skel.PluginMainFuncsWithError(skel.CNIFuncs{
		Add: p.add, Check: p.check, Status: p.status,
		GC: func(*skel.CmdArgs) error { return nil }, // the plugin keeps nothing
	}, version.All, about)
	if err != nil {
		// There is nowhere else to report an error of writing.
		_ = err.Print()
		return 1
	}
	// After skel's own checks: the output must be either a result or an error.
	if _, err := os.Stdout.Write(p.result); err != nil {
		return 1
	}
	return 0
}

// plugin is one run.
type plugin struct {
	redirect Redirect
	result   []byte // of a successful ADD
}

// add is the command ADD.
func (p *plugin) add(args *skel.CmdArgs) error {
	c, err := parseConfig(args.StdinData)
	if err != nil {
		return err
	}
	if len(c.PrevResult) == 0 {
		return types.NewError(types.ErrInvalidNetworkConfig, "there is no prevResult: this plugin must follow another one in a list", "")
	}
	if err := p.apply(args, c, p.redirect.Install); err != nil {
		return err
	}
	p.result = c.PrevResult
	return nil
}

// check is the command CHECK.
func (p *plugin) check(args *skel.CmdArgs) error {
	c, err := parseConfig(args.StdinData)
	if err != nil {
		return err
	}
	return p.apply(args, c, p.redirect.Check)
}

// status is the command STATUS: the plugin is ready if its configuration is valid.
func (p *plugin) status(args *skel.CmdArgs) error {
	_, err := parseConfig(args.StdinData)
	return err
}

// apply calls do with the pod's namespace and the redirect that the pod asks for, if it does.
func (p *plugin) apply(args *skel.CmdArgs, c config, do func(*os.File, netrules.Config) error) error {
	wanted, asked, err := c.wanted()
	if err != nil || !asked {
		return err
	}
	netns, err := openNamespace(args.Netns)
	if err != nil {
		return types.NewError(types.ErrInvalidNetNS, err.Error(), "")
	}
	defer netns.Close()
	if err := do(netns, wanted); err != nil {
		return types.NewError(codeRedirect, err.Error(), remedy(err))
	}
	return nil
}

// remedy returns how to fix an error of netrules, or "".
func remedy(err error) string {
	failure, ok := errors.AsType[*netrules.Error](err)
	if !ok {
		return ""
	}
	return failure.Remedy
}
