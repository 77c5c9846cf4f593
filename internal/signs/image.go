package signs

import (
	"regexp"
	"strings"
)

// images says which tool an image is of, by the last parts of its name. It is no verdict: the tool's
// configuration decides.
var images = []struct {
	source string
	name   *regexp.Regexp
}{
	{"IMDS201", re(`(?:^|/)keda(?:-operator)?$`)},
	{"IMDS203", re(`(?:^|/)external-secrets$`)},
	{"IMDS204", re(`(?:^|/)azureserviceoperator$`)},
	{"IMDS205", re(`(?:^|/)(?:source-controller|image-reflector-controller|kustomize-controller)$`)},
	{"IMDS206", re(`(?:^|/)cert-manager-controller$`)},
	{"IMDS207", re(`(?:^|/)external-dns$`)},
	{"IMDS208", re(`(?:^|/)(?:ingress-azure|azure-application-gateway/kubernetes-ingress)$`)},
	{"IMDS209", re(`(?:^|/)velero(?:-plugin-for-microsoft-azure)?$`)},
	{"IMDS211", re(`(?:^|/)argocd$`)},
	{"IMDS212", re(`(?:^|/)provider-(?:family-)?azure(?:-[a-z]+)?$`)},
	{"IMDS213", re(`(?:^|/)cluster-autoscaler$`)},
	{"IMDS215", re(`(?:^|/)(?:azuredisk-csi|azurefile-csi|blob-csi)$`)},
	{"IMDS216", re(`(?:^|/)prometheus$`)},
	{"IMDS217", re(`(?:^|/)thanos$`)},
	{"IMDS218", re(`(?:^|/)loki$`)},
	{"IMDS219", re(`(?:^|/)tempo$`)},
	{"IMDS220", re(`(?:^|/)(?:mimir|cortex)$`)},
	{"IMDS226", re(`(?:^|/)azure-cli$`)},
}

// Image returns the code of the tool that an image is of, or "".
func Image(image string) string {
	name, _ := ImageVersion(image)
	for _, i := range images {
		if i.name.MatchString(name) {
			return i.source
		}
	}
	return ""
}

// ImageVersion splits a reference into its name and its tag. The tag is empty if there is none.
func ImageVersion(image string) (name, tag string) {
	name, _, _ = strings.Cut(image, "@")
	if at := strings.LastIndexByte(name, ':'); at > strings.LastIndexByte(name, '/') {
		name, tag = name[:at], name[at+1:]
	}
	return strings.ToLower(name), tag
}
