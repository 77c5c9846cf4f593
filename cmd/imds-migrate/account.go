package main

import (
	"cmp"
	"fmt"
	"io"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"imds-oidc-proxy/internal/inject"
)

// accounts has the service accounts that were read, by namespace and name.
type accounts map[string]*corev1.ServiceAccount

// collect adds an object if it is a service account. The later one of the same name replaces the
// earlier one, as with kubectl apply.
func (a accounts) collect(o object) error {
	if o.group != "" || o.kind != "ServiceAccount" {
		return nil
	}
	metadata := o.node.Get("metadata")
	if err := unquoted(metadata); err != nil {
		return err
	}
	account := new(corev1.ServiceAccount)
	if err := decode(o.node, account); err != nil {
		return err
	}
	account.Namespace = o.namespace
	a[o.namespace+"/"+o.name] = account
	return nil
}

// account returns a pod's service account. If it was not read, account returns an empty one with
// the client ID of --client-id, or a warning.
func (m *migration) account(pod *corev1.Pod) (account *corev1.ServiceAccount, warning string) {
	name := cmp.Or(pod.Spec.ServiceAccountName, pod.Spec.DeprecatedServiceAccount, "default")
	account = m.accounts[pod.Namespace+"/"+name]
	if account == nil {
		account = &corev1.ServiceAccount{}
		account.Namespace, account.Name = pod.Namespace, name
		if m.options.clientID == "" {
			warning = fmt.Sprintf("ServiceAccount %s/%s was not found: add it with --service-account-file, or set --client-id (the webhook reads it from the API server)", pod.Namespace, name)
		}
	}
	if m.options.clientID == "" || account.Annotations[inject.ClientIDAnnotation] != "" {
		return account, warning
	}
	account = account.DeepCopy()
	metav1.SetMetaDataAnnotation(&account.ObjectMeta, inject.ClientIDAnnotation, string(m.options.clientID))
	return account, warning
}

// readAccounts reads the service accounts in the files of --service-account-file.
func (m *migration) readAccounts(stdin io.Reader) {
	for _, name := range m.options.accountFile {
		f, err := readFile(name, stdin)
		if err != nil {
			m.refuse(&file{name: name}, object{}, err)
			continue
		}
		for _, d := range m.parse(f) {
			m.collect(d)
		}
	}
}

func (m *migration) collect(d document) {
	for _, o := range d.objects {
		if err := m.accounts.collect(o); err != nil {
			m.refuse(d.file, o, err)
		}
	}
}
