// Package inject decides what a pod needs so that it gets tokens through the
// proxy: from a pod, its service account and a configuration it makes a JSON patch,
// or says in one line why it will not.
//
//	result, err := inject.Pod(pod, account, config)
//	var refusal *inject.Refusal
//	if refusal, ok := errors.AsType[*inject.Refusal](err); ok { … } // what the pod's author has to change
//	for _, operation := range result.Patch { … }
//
// The admission webhook and the command line differ in how they read and write; what
// they do to a pod is this package alone. It is a pure function: no network, no
// files, no clock, no chance, and the pod that it is given is only read.
//
// The patch names single fields. What this package does not know, such as fields
// newer than the types that it is built with, is never part of it. A second pass,
// over the pod as patched, as the API server's defaults have filled it, or as
// another webhook has changed it, finds nothing to do or mends what was changed.
//
// It knows the words of azure-workload-identity, whose webhook may act on the same
// pod before or after: the label, the annotations and the names of both containers
// are the same, so that each recognises the other's work.
//
// # Security considerations
//
// The pod and its annotations come from whoever may create pods in a namespace. They
// choose among what the configuration offers, their own images included: who may
// create pods can run any image anyway. What goes into a patch are values of those
// annotations in typed fields, never as a shell's words. The init container has
// NET_ADMIN; a pod that could not have it otherwise does not get it here, since
// admission judges the pod after the patch.
package inject
