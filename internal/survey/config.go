package survey

import (
	"encoding/base64"
	"strings"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/signs"
)

// maxValue is the length of the longest value of a ConfigMap that is kept: a longer one is no value of a
// variable that names an identity.
const maxValue = 256

// addConfig adds a ConfigMap or a Secret: the signs in each of its keys, and the short values of a
// ConfigMap.
func (s *Survey) addConfig(h *header, text []byte) error {
	var config struct {
		Data       map[string]string `json:"data"`
		StringData map[string]string `json:"stringData"`
	}
	if err := decode(text, &config); err != nil {
		return err
	}
	secret := h.Kind == "Secret"
	keys := map[string]Text{}
	for key, value := range config.Data {
		if secret {
			decoded, err := base64.StdEncoding.DecodeString(value)
			if err != nil {
				continue
			}
			value = string(decoded)
		}
		keys[key] = textOf(key, value, secret)
	}
	for key, value := range config.StringData {
		keys[key] = textOf(key, value, secret)
	}
	s.Configs[h.ref()] = keys
	if secret {
		return s.addSecret(h, keys)
	}
	return nil
}

// addSecret keeps the metadata of a Secret, by whose labels its tool is known, without its data.
func (s *Survey) addSecret(h *header, keys map[string]Text) error {
	o := &Object{Ref: h.ref(), Version: "v1", Meta: h.Metadata.Meta, Body: map[string]any{}}
	for key := range keys {
		o.Body[key] = nil
	}
	s.Objects[o.Ref] = o
	return nil
}

func textOf(key, value string, secret bool) Text {
	t := Text{AsVariable: signs.Env(key, value), AsFile: signs.Text(value), Instance: signs.NeedsInstance(value)}
	if secret && !isOpen(key, value) || len(value) > maxValue || strings.ContainsAny(value, "\r\n") {
		return t
	}
	t.Value = value
	return t
}

// isOpen reports whether a value of a Secret is not secret: the client ID of an identity, and whether workload
// identity is on.
func isOpen(key, value string) bool {
	_, err := azure.ParseClientID(value)
	return key == azure.EnvClientID && err == nil || key == WorkloadIdentityAuth && value == "true"
}

// WorkloadIdentityAuth is the key with which a Secret of Azure Service Operator turns on workload identity.
const WorkloadIdentityAuth = "USE_WORKLOAD_IDENTITY_AUTH"
