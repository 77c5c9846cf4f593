package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"imds-oidc-proxy/internal/inject"
)

// accounts has the metadata of service accounts, by namespace and name.
type accounts map[string]*metav1.ObjectMeta

// serviceAccount returns the metadata of an object that is a service account, or nil for another
// kind.
func (o object) serviceAccount() (*metav1.ObjectMeta, error) {
	if o.group != "" || o.kind != "ServiceAccount" {
		return nil, nil
	}
	if err := unquoted(o.node.Get("metadata")); err != nil {
		return nil, err
	}
	account := new(corev1.ServiceAccount)
	if err := decode(o.node, account); err != nil {
		return nil, err
	}
	return &metav1.ObjectMeta{
		Namespace: o.namespace, Name: o.name,
		Labels: account.Labels, Annotations: account.Annotations,
	}, nil
}

// apply adds a service account as kubectl apply would: a label or an annotation replaces the one of
// the same name. One that the account lacks stays, unless it is in the last applied configuration:
// then its author has removed it since.
func (a accounts) apply(account *metav1.ObjectMeta) {
	key := account.Namespace + "/" + account.Name
	live := a[key]
	if live == nil {
		a[key] = account
		return
	}
	last := lastApplied(live)
	live.Labels = merged(live.Labels, last.Labels, account.Labels)
	live.Annotations = merged(live.Annotations, last.Annotations, account.Annotations)
}

// lastApplied returns the labels and annotations of the configuration that kubectl applied last, or
// none if it is unknown.
func lastApplied(live *metav1.ObjectMeta) metav1.ObjectMeta {
	var last struct {
		Metadata metav1.ObjectMeta `json:"metadata"`
	}
	if json.Unmarshal([]byte(live.Annotations[corev1.LastAppliedConfigAnnotation]), &last) != nil {
		return metav1.ObjectMeta{}
	}
	return last.Metadata
}

// merged is the three-way merge of kubectl apply.
func merged(live, last, next map[string]string) map[string]string {
	all := map[string]string{}
	maps.Copy(all, live)
	maps.DeleteFunc(all, func(name, _ string) bool { _, applied := last[name]; return applied })
	maps.Copy(all, next)
	return all
}

// account returns a pod's service account. If it was not read, account returns an empty one with
// the client ID of --client-id, or a warning.
func (m *migration) account(pod *corev1.Pod) (account *corev1.ServiceAccount, warning string) {
	name := cmp.Or(pod.Spec.ServiceAccountName, pod.Spec.DeprecatedServiceAccount, "default")
	account = new(corev1.ServiceAccount)
	if known := m.accounts[pod.Namespace+"/"+name]; known != nil {
		known.DeepCopyInto(&account.ObjectMeta)
	} else {
		account.Namespace, account.Name = pod.Namespace, name
		if m.options.clientID == "" {
			warning = fmt.Sprintf("ServiceAccount %s/%s was not found: add it with --service-account-file, or set --client-id (the webhook reads it from the API server)", pod.Namespace, name)
		}
	}
	if m.options.clientID == "" || account.Annotations[inject.ClientIDAnnotation] != "" {
		return account, warning
	}
	metav1.SetMetaDataAnnotation(&account.ObjectMeta, inject.ClientIDAnnotation, string(m.options.clientID))
	return account, warning
}

// readAccounts reads the service accounts in the files of --service-account-file.
func (m *migration) readAccounts(stdin io.Reader) {
	for _, name := range m.options.accountFile {
		f, err := newFile(name, stdin)
		if err == nil {
			err = m.documents(f, everyPart, m.readAccount)
			f.stdin.close()
		}
		if err != nil {
			m.refuse(&file{name: name}, object{}, err)
		}
	}
}

func (m *migration) readAccount(d document) error {
	for _, o := range d.objects {
		account, err := o.serviceAccount()
		if err != nil {
			m.refuse(d.file, o, err)
		} else if account != nil {
			m.accounts.apply(account)
		}
	}
	return nil
}
