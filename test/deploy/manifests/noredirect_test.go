package manifests

import (
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// metadataAddress is the address of the node's IMDS.
const metadataAddress = "169.254.169.254"

// TestMetadataAddressIsDenied evaluates the NetworkPolicy of the variant without a redirect: it applies
// to the pod, denies the metadata address, and allows everything else that a pod may need.
func TestMetadataAddressIsDenied(t *testing.T) {
	v := load(t, "no-redirect")
	var policies []*networkingv1.NetworkPolicy
	for _, object := range v.objects {
		if policy, ok := object.(*networkingv1.NetworkPolicy); ok {
			policies = append(policies, policy)
		}
	}
	if len(policies) != 1 {
		t.Fatalf("%d policies, want one: egress is allowed if any of them allows it", len(policies))
	}
	policy := policies[0]
	selected, err := metav1.LabelSelectorAsSelector(&policy.Spec.PodSelector)
	if err != nil || !selected.Matches(labels.Set(v.pod.Labels)) {
		t.Errorf("it selects %s (%v), not the pod's labels %v", selected, err, v.pod.Labels)
	}
	if want := []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}; !slices.Equal(policy.Spec.PolicyTypes, want) {
		t.Errorf("policy types %v, want %v: another type would deny connections to the application", policy.Spec.PolicyTypes, want)
	}
	for address, want := range map[string]bool{
		metadataAddress:   false,
		"169.254.169.253": true, "169.254.169.255": true, "169.254.20.10": true, // the node's DNS cache
		"168.63.129.16": true, "10.0.0.10": true, "198.51.100.7": true, "0.0.0.1": true, "255.255.255.254": true,
		"2001:db8::7": true, "fd00::1": true,
	} {
		if got := allowed(t, policy, netip.MustParseAddr(address)); got != want {
			t.Errorf("%s: allowed is %t, want %t", address, got, want)
		}
	}
	if !slices.ContainsFunc(policy.Spec.Egress, func(rule networkingv1.NetworkPolicyEgressRule) bool {
		return slices.ContainsFunc(rule.To, func(p networkingv1.NetworkPolicyPeer) bool {
			return p.PodSelector == nil && p.NamespaceSelector != nil && len(p.NamespaceSelector.MatchLabels)+len(p.NamespaceSelector.MatchExpressions) == 0
		})
	}) {
		t.Error("no rule allows the pods of all namespaces, such as the DNS server")
	}
}

// allowed reports whether a policy allows egress to an address outside of the cluster.
func allowed(t *testing.T, policy *networkingv1.NetworkPolicy, address netip.Addr) bool {
	t.Helper()
	for _, rule := range policy.Spec.Egress {
		if len(rule.To) == 0 {
			return true // a rule without a destination allows all
		}
		for _, peer := range rule.To {
			if peer.IPBlock == nil || !netip.MustParsePrefix(peer.IPBlock.CIDR).Contains(address) {
				continue
			}
			if !slices.ContainsFunc(peer.IPBlock.Except, func(except string) bool { return netip.MustParsePrefix(except).Contains(address) }) {
				return true
			}
		}
	}
	return false
}

// TestAppServiceVariables checks that the application and the proxy of the variant without a redirect
// have the same secret, which no manifest contains, and that the application has all variables.
func TestAppServiceVariables(t *testing.T) {
	const endpoint = "http://127.0.0.1:8000/msi/token"
	v := load(t, "no-redirect")
	env := func(container string) map[string]corev1.EnvVar {
		set := map[string]corev1.EnvVar{}
		for _, e := range v.container(container).Env {
			set[e.Name] = e
		}
		return set
	}
	app, proxy := env("app"), env(sidecarName)
	for _, name := range []string{"IDENTITY_ENDPOINT", "MSI_ENDPOINT"} {
		if app[name].Value != endpoint {
			t.Errorf("%s is %q, want %q", name, app[name].Value, endpoint)
		}
	}
	for _, e := range []corev1.EnvVar{app["IDENTITY_HEADER"], app["MSI_SECRET"], proxy["PROXY_APP_SERVICE_HEADER"]} {
		if e.ValueFrom == nil || e.ValueFrom.FieldRef == nil || e.ValueFrom.FieldRef.FieldPath != "metadata.uid" {
			t.Errorf("%+v does not refer to the pod's UID", e)
		}
	}
	if got := app["AZURE_POD_IDENTITY_AUTHORITY_HOST"].Value; got != "http://127.0.0.1:8000" {
		t.Errorf("AZURE_POD_IDENTITY_AUTHORITY_HOST is %q", got)
	}
}
