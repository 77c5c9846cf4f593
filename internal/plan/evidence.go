package plan

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/internal/signs"
	"imds-oidc-proxy/internal/survey"
)

// evidence is what a workload's pod template says about tokens.
type evidence struct {
	signs []signs.Sign
	// tokenFile reports whether a container has AZURE_FEDERATED_TOKEN_FILE, and proxy whether the
	// template has the proxy's container. proxyImage is its image.
	tokenFile, proxy bool
	proxyImage       string
	// host is the value of AZURE_POD_IDENTITY_AUTHORITY_HOST.
	host string
	// authority is the value of AZURE_AUTHORITY_HOST.
	authority string
	instance  bool
	tools     []string // codes of the tools that the images are of
	// outdated has the versions of tools that have no workload identity yet, by code.
	outdated map[string]string
}

// variables are the variables of one container. A value that is not known is empty.
type variables map[string]string

func (v variables) has(name string) bool { _, set := v[name]; return set }

// evidenceOf collects the signs in a workload's pod template.
func (b *builder) evidenceOf(w *survey.Workload) evidence {
	e := evidence{signs: slices.Clone(w.Signs), proxy: w.Live.Proxy, proxyImage: w.Live.Image, tokenFile: w.Live.TokenFile, outdated: map[string]string{}}
	labelled := w.Template.Labels[inject.UseLabel] == "true"
	for _, c := range slices.Concat(w.Template.Spec.InitContainers, w.Template.Spec.Containers) {
		switch c.Name {
		case inject.ProxyName:
			e.proxy, e.proxyImage = true, c.Image
			continue
		case inject.ProxyInitName:
			continue
		}
		b.container(&e, w, c, labelled)
	}
	for _, value := range w.Template.Annotations {
		e.signs = append(e.signs, signs.Text(value)...)
	}
	b.volumes(&e, w)
	e.signs = signs.Sort(e.signs)
	slices.Sort(e.tools)
	e.tools = slices.Compact(e.tools)
	return e
}

func (b *builder) container(e *evidence, w *survey.Workload, c corev1.Container, labelled bool) {
	env, found := b.environment(w.Namespace, c)
	args := slices.Concat(c.Command, c.Args)
	found = append(found, signs.Command(args)...)
	if env.has(azure.EnvClientID) && !signs.HasOtherCredential(env.has) && !labelled {
		found = append(found, signs.ClientIDOnly(env[azure.EnvClientID]))
	}
	if withSecret := hasSecret(env); withSecret {
		found = slices.DeleteFunc(found, func(s signs.Sign) bool { return s.Source == signs.Service })
	}
	for _, s := range found {
		e.signs = append(e.signs, s.Identity(env))
	}
	e.tokenFile = e.tokenFile || env.has(azure.EnvFederatedTokenFile)
	e.host = cmp.Or(e.host, env[azure.EnvIMDSHost])
	e.authority = cmp.Or(e.authority, env[azure.EnvAuthorityHost])
	e.instance = e.instance || slices.ContainsFunc(args, signs.NeedsInstance)
	if code := signs.Image(c.Image); code != "" {
		e.tools = append(e.tools, code)
		if name, tag := signs.ImageVersion(c.Image); tools[code].image == name[strings.LastIndexByte(name, '/')+1:] && tools[code].outdated(tag) {
			e.outdated[code] = tag
		}
	}
}

func hasSecret(env variables) bool {
	for name, value := range env {
		if signs.MaySecret(name, value) {
			return true
		}
	}
	return false
}

// environment returns the variables of a container, also those of ConfigMaps, and their signs.
func (b *builder) environment(namespace string, c corev1.Container) (variables, []signs.Sign) {
	env := variables{}
	var found []signs.Sign
	for _, from := range c.EnvFrom {
		for key, value := range b.source(namespace, from) {
			env[from.Prefix+key] = value.Value
			if from.Prefix == "" {
				found = append(found, value.AsVariable...)
			} else {
				found = append(found, signs.Env(from.Prefix+key, value.Value)...)
			}
		}
	}
	for _, e := range c.Env {
		value := e.Value
		switch ref := e.ValueFrom; {
		case ref == nil:
		case ref.ConfigMapKeyRef != nil:
			value = b.config("ConfigMap", namespace, ref.ConfigMapKeyRef.Name)[ref.ConfigMapKeyRef.Key].Value
		case ref.SecretKeyRef != nil:
			value = b.config("Secret", namespace, ref.SecretKeyRef.Name)[ref.SecretKeyRef.Key].Value
		}
		env[e.Name] = value
		found = append(found, signs.Env(e.Name, value)...)
	}
	return env, found
}

func (b *builder) source(namespace string, from corev1.EnvFromSource) map[string]survey.Text {
	switch {
	case from.ConfigMapRef != nil:
		return b.config("ConfigMap", namespace, from.ConfigMapRef.Name)
	case from.SecretRef != nil:
		return b.config("Secret", namespace, from.SecretRef.Name)
	}
	return nil
}

func (b *builder) config(kind, namespace, name string) map[string]survey.Text {
	return b.Configs[survey.Ref{Kind: kind, Namespace: namespace, Name: name}]
}

// volumes adds the signs in files that the pod mounts from ConfigMaps and Secrets.
func (b *builder) volumes(e *evidence, w *survey.Workload) {
	for _, v := range w.Template.Spec.Volumes {
		switch {
		case v.ConfigMap != nil:
			e.files(b.config("ConfigMap", w.Namespace, v.ConfigMap.Name), v.ConfigMap.Items)
		case v.Secret != nil:
			e.files(b.config("Secret", w.Namespace, v.Secret.SecretName), v.Secret.Items)
		case v.Projected != nil:
			for _, source := range v.Projected.Sources {
				if source.ConfigMap != nil {
					e.files(b.config("ConfigMap", w.Namespace, source.ConfigMap.Name), source.ConfigMap.Items)
				}
				if source.Secret != nil {
					e.files(b.config("Secret", w.Namespace, source.Secret.Name), source.Secret.Items)
				}
			}
		}
	}
}

// files adds the signs of all keys, or of those that are mounted.
func (e *evidence) files(keys map[string]survey.Text, items []corev1.KeyToPath) {
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		mounted := len(items) == 0 || slices.ContainsFunc(items, func(i corev1.KeyToPath) bool { return i.Key == key })
		if !mounted {
			continue
		}
		for _, s := range keys[key].AsFile {
			s.Text = key + ": " + s.Text
			e.signs = append(e.signs, s)
		}
		e.instance = e.instance || keys[key].Instance
	}
}

// certainty returns the highest certainty of the signs that say that IMDS is asked.
func (e evidence) certainty() (highest signs.Certainty, any bool) {
	for _, s := range e.signs {
		if s.Source != signs.OtherHost {
			highest, any = max(highest, s.Certainty), true
		}
	}
	return highest, any
}

// sources returns the codes of the tools that are configured for a managed identity.
func (e evidence) sources() []string {
	var codes []string
	for _, s := range e.signs {
		if isTool(s.Source) && s.Certainty == signs.Certain {
			codes = append(codes, s.Source)
		}
	}
	slices.Sort(codes)
	return slices.Compact(codes)
}

// evidenceText returns a sign for a person, with the code that explains it if the sign is of a tool.
func evidenceText(s signs.Sign) string {
	if isTool(s.Source) {
		return oneLine(s.Source + " " + s.Text)
	}
	return oneLine(s.Text)
}

// texts returns the evidence for a person.
func (e evidence) texts(verbose signs.Certainty) []string {
	texts := []string{}
	for _, s := range e.signs {
		if s.Certainty >= verbose {
			texts = append(texts, evidenceText(s))
		}
	}
	return slices.Compact(texts)
}
