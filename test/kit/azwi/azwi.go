// Package azwi imitates azure-workload-identity's webhook, so that tests can run it on
// the same pods as this project's webhook. It uses the same names and the same order as
// the original, and has the same bugs. [V160] follows v1.6.0, whose behaviour was
// observed in a cluster. [Older] and [Newer] are other known versions, which mount the
// token at another path.
//
// With a [TokenEndpoint] it does what v1.6.0 does for identity bindings, in AKS's form with
// [AKS]. The sources are azure-workload-identity's pkg/webhook/webhook.go and pkg/config (main,
// 0042363d7ccda7fe0339edac28b482d935b7d229) and its unit tests, and for the values of AKS the
// guide of the private preview of identity bindings in Azure/AKS, which installs the webhook
// with them. The server name has the form of secrets-store-csi-driver-provider-azure, which
// computes it from an ID of the cluster.
package azwi

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Layout is how a version of the webhook mounts the token.
type Layout int

// The layouts.
const (
	// V160 derives the volume's name from the pod's, and mounts it at the same path in
	// all pods.
	V160 Layout = iota
	// Older uses the same name in all pods, and another path than V160. The real webhook
	// also leaves a projected volume alone that has its token's path.
	Older
	// Newer mounts the volume at a path that contains a hash of the pod's name.
	Newer
)

// The images that the webhook injects.
const (
	ProxyImage     = "registry.example.test/azwi/proxy:v1.6.0"
	ProxyInitImage = "registry.example.test/azwi/proxy-init:v1.6.0"
)

// Webhook is an installation of the webhook.
type Webhook struct {
	Layout Layout
	// NativeSidecar injects the proxy as a native sidecar. The real webhook does so from
	// Kubernetes 1.32 on.
	NativeSidecar bool
	// TenantID is the default tenant of all pods.
	TenantID string
	// Endpoint is for pods with its annotation. Zero: there is none.
	Endpoint TokenEndpoint
}

// TokenEndpoint is the configuration of a custom token endpoint, for identity bindings.
type TokenEndpoint struct {
	// Suffix is the end of the annotation's name, after use-.
	Suffix string
	// Audience is the audience of the projected token.
	Audience string
	// TokenProxy and SNIName are the URL and the TLS server name.
	TokenProxy, SNIName string
	// CAData, CAConfigMap and CASigner say where the certificate authorities are: at most one
	// of them is set. CALabels selects the ClusterTrustBundles of CASigner.
	CAData, CAConfigMap, CASigner string
	CALabels                      *metav1.LabelSelector
}

// AKS returns the configuration of AKS's webhook. The token proxy is the API server, which
// distinguishes it by the server name, so that its certificate authority is in the ConfigMap that
// each namespace has.
func AKS() TokenEndpoint {
	return TokenEndpoint{
		Suffix:      "identity-binding",
		Audience:    "api://AKSIdentityBinding",
		TokenProxy:  "https://kubernetes.default.svc",
		SNIName:     "adjohu9u1dlsmhjkfb9rc27r2rl3iuv7jlrjrafk5ic3sov52hu8g.ests.aks",
		CAConfigMap: "kube-root-ca.crt",
	}
}

const (
	prefix   = "azure.workload.identity/"
	reserved = "azure-workload-identity-reserved-"
	proxy    = "azwi-proxy"
	initName = "azwi-proxy-init"
	wiPath   = "/var/run/secrets/azure/wi"
	oldPath  = "/var/run/secrets/azure/tokens"
	oldToken = "azure-identity-token"
	caFile   = "ca-cert/ca.crt"
	audience = "api://AzureADTokenExchange"
)

// Mutate returns the pod as the webhook changes it. A pod without the label is returned
// unchanged: the API server does not send it to the webhook.
func (w Webhook) Mutate(pod *corev1.Pod, account *corev1.ServiceAccount) (*corev1.Pod, error) {
	pod = pod.DeepCopy()
	if pod.Labels[prefix+"use"] != "true" {
		return pod, nil
	}
	// The webhook does not look at the value: "false" injects the sidecar too.
	if _, inject := pod.Annotations[prefix+"inject-proxy-sidecar"]; inject {
		if err := w.inject(pod); err != nil {
			return nil, err
		}
	}
	expiration, err := expiration(pod, account)
	if err != nil {
		return nil, err
	}
	volume := w.volume(pod, expiration)
	skip := strings.Split(pod.Annotations[prefix+"skip-containers"], ";")
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if !slices.ContainsFunc(skip, func(s string) bool { return strings.TrimSpace(s) == list[i].Name }) {
				w.container(&list[i], pod, account, volume)
			}
		}
	}
	w.addVolume(pod, volume)
	return pod, nil
}

func (w Webhook) inject(pod *corev1.Pod) error {
	if pod.Spec.HostNetwork {
		return fmt.Errorf("hostNetwork is set to true, cannot inject proxy sidecar")
	}
	port := int64(8000)
	if value, ok := pod.Annotations[prefix+"proxy-sidecar-port"]; ok {
		var err error
		if port, err = strconv.ParseInt(value, 10, 32); err != nil {
			return err
		}
	}
	if !has(pod.Spec.InitContainers, initName) {
		pod.Spec.InitContainers = append(pod.Spec.InitContainers, initContainer(port))
	}
	list := &pod.Spec.Containers
	if w.NativeSidecar {
		list = &pod.Spec.InitContainers
	}
	if !has(*list, proxy) {
		*list = slices.Insert(*list, 0, w.proxyContainer(port))
	}
	return nil
}

func has(list []corev1.Container, name string) bool {
	return slices.ContainsFunc(list, func(c corev1.Container) bool { return c.Name == name })
}

func initContainer(port int64) corev1.Container {
	return corev1.Container{
		Name:            initName,
		Image:           ProxyInitImage,
		ImagePullPolicy: corev1.PullIfNotPresent,
		Env:             []corev1.EnvVar{{Name: "PROXY_PORT", Value: strconv.FormatInt(port, 10)}},
		SecurityContext: &corev1.SecurityContext{
			Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"NET_ADMIN"}, Drop: []corev1.Capability{"ALL"}},
			Privileged:   new(true),
			RunAsNonRoot: new(false),
			RunAsUser:    new(int64(0)),
		},
	}
}

func (w Webhook) proxyContainer(port int64) corev1.Container {
	portFlag, level := fmt.Sprintf("--proxy-port=%d", port), "--log-level=info"
	c := corev1.Container{
		Name:            proxy,
		Image:           ProxyImage,
		ImagePullPolicy: corev1.PullIfNotPresent,
		Args:            []string{portFlag, level},
		Ports:           []corev1.ContainerPort{{ContainerPort: int32(port)}},
		Lifecycle: &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{
			Exec: &corev1.ExecAction{Command: []string{"/proxy", portFlag, "--probe", level}},
		}},
		SecurityContext: &corev1.SecurityContext{
			AllowPrivilegeEscalation: new(false),
			Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			Privileged:               new(false),
			ReadOnlyRootFilesystem:   new(true),
			RunAsNonRoot:             new(true),
		},
	}
	if w.NativeSidecar {
		c.RestartPolicy = new(corev1.ContainerRestartPolicyAlways)
	}
	return c
}

func expiration(pod *corev1.Pod, account *corev1.ServiceAccount) (int64, error) {
	const name = prefix + "service-account-token-expiration"
	value := pod.Annotations[name]
	if value == "" && account != nil {
		value = account.Annotations[name]
	}
	if value == "" {
		return 3600, nil
	}
	seconds, err := strconv.ParseInt(value, 10, 64)
	if err == nil && (seconds < 3600 || seconds > 86400) {
		err = fmt.Errorf("token expiration %d not valid", seconds)
	}
	return seconds, err
}

func podHash(pod *corev1.Pod) string {
	name := pod.Name
	if name == "" {
		name = pod.GenerateName + " (prefix)"
	}
	hash := sha256.Sum256([]byte(name))
	return hex.EncodeToString(hash[:])[:63-len(reserved)]
}

// mount returns the mount path of the token's volume, and the token's path in the volume.
func (w Webhook) mount(pod *corev1.Pod) (dir, file string) {
	switch w.Layout {
	case Older:
		return oldPath, oldToken
	case Newer:
		return path.Join(wiPath, podHash(pod)), "token/" + oldToken
	}
	return wiPath, "token/" + oldToken
}

func (w Webhook) volume(pod *corev1.Pod, expiration int64) corev1.Volume {
	name := reserved + podHash(pod)
	if w.Layout == Older {
		name = oldToken
	}
	_, file := w.mount(pod)
	token := corev1.ServiceAccountTokenProjection{Path: file, Audience: audience, ExpirationSeconds: &expiration}
	sources := []corev1.VolumeProjection{{ServiceAccountToken: &token}}
	if w.bound(pod) {
		token.Audience = w.Endpoint.Audience
		sources = append(sources, w.Endpoint.authorities()...)
	}
	return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: sources}}}
}

// bound reports whether the pod selects the token endpoint.
func (w Webhook) bound(pod *corev1.Pod) bool {
	return w.Endpoint.Suffix != "" && strings.EqualFold(pod.Annotations[prefix+"use-"+w.Endpoint.Suffix], "true")
}

func (e TokenEndpoint) authorities() (sources []corev1.VolumeProjection) {
	if e.CAConfigMap != "" {
		sources = append(sources, corev1.VolumeProjection{ConfigMap: &corev1.ConfigMapProjection{
			LocalObjectReference: corev1.LocalObjectReference{Name: e.CAConfigMap},
			Items:                []corev1.KeyToPath{{Key: "ca.crt", Path: caFile}}, Optional: new(false),
		}})
	}
	if e.CASigner != "" {
		sources = append(sources, corev1.VolumeProjection{ClusterTrustBundle: &corev1.ClusterTrustBundleProjection{
			SignerName: &e.CASigner, LabelSelector: e.CALabels, Path: caFile, Optional: new(false),
		}})
	}
	return sources
}

// env returns the variables of the endpoint. The webhook sets the path of the authorities also if
// there is no such file.
func (e TokenEndpoint) env(dir string) []corev1.EnvVar {
	return []corev1.EnvVar{
		{Name: "AZURE_KUBERNETES_TOKEN_PROXY", Value: e.TokenProxy},
		{Name: "AZURE_KUBERNETES_SNI_NAME", Value: e.SNIName},
		{Name: "AZURE_KUBERNETES_CA_FILE", Value: path.Join(dir, caFile)},
		{Name: "AZURE_KUBERNETES_CA_DATA", Value: e.CAData},
	}
}

func (w Webhook) container(c *corev1.Container, pod *corev1.Pod, account *corev1.ServiceAccount, volume corev1.Volume) {
	dir, file := w.mount(pod)
	tenant, clientID := w.TenantID, ""
	if account != nil {
		clientID = account.Annotations[prefix+"client-id"]
		if value, ok := account.Annotations[prefix+"tenant-id"]; ok {
			tenant = value
		}
	}
	wanted := []corev1.EnvVar{
		{Name: "AZURE_CLIENT_ID", Value: clientID},
		{Name: "AZURE_TENANT_ID", Value: tenant},
		{Name: "AZURE_FEDERATED_TOKEN_FILE", Value: path.Join(dir, file)},
		{Name: "AZURE_AUTHORITY_HOST", Value: "https://login.microsoftonline.com/"},
	}
	if w.bound(pod) {
		wanted = append(wanted, w.Endpoint.env(dir)...)
	}
	for _, env := range wanted {
		exists := slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == env.Name })
		if !exists && env.Value != "" {
			c.Env = append(c.Env, env)
		}
	}
	mount := corev1.VolumeMount{Name: volume.Name, MountPath: dir, ReadOnly: true}
	// The webhook compares names only, and misses another volume at the same path.
	if i := slices.IndexFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == volume.Name }); i >= 0 {
		c.VolumeMounts[i] = mount
		return
	}
	c.VolumeMounts = append(c.VolumeMounts, mount)
}

func (w Webhook) addVolume(pod *corev1.Pod, volume corev1.Volume) {
	if i := slices.IndexFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == volume.Name }); i >= 0 {
		pod.Spec.Volumes[i] = volume
		return
	}
	pod.Spec.Volumes = append(pod.Spec.Volumes, volume)
}
