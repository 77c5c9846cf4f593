package signs

import (
	"regexp"
	"strings"
)

// images says which tool an image is of, by the last parts of its name. It is no verdict: the tool's
// configuration decides.
var images = []struct {
	row  string
	name *regexp.Regexp
}{
	{"C1", re(`(?:^|/)keda(?:-operator)?$`)},
	{"C3", re(`(?:^|/)external-secrets$`)},
	{"C4", re(`(?:^|/)azureserviceoperator$`)},
	{"C5", re(`(?:^|/)(?:source-controller|image-reflector-controller|kustomize-controller)$`)},
	{"C6", re(`(?:^|/)cert-manager-controller$`)},
	{"C7", re(`(?:^|/)external-dns$`)},
	{"C8", re(`(?:^|/)(?:ingress-azure|azure-application-gateway/kubernetes-ingress)$`)},
	{"C9", re(`(?:^|/)velero(?:-plugin-for-microsoft-azure)?$`)},
	{"C11", re(`(?:^|/)argocd$`)},
	{"C12", re(`(?:^|/)provider-(?:family-)?azure(?:-[a-z]+)?$`)},
	{"C13", re(`(?:^|/)cluster-autoscaler$`)},
	{"C15", re(`(?:^|/)(?:azuredisk-csi|azurefile-csi|blob-csi)$`)},
	{"C16", re(`(?:^|/)prometheus$`)},
	{"C17", re(`(?:^|/)thanos$`)},
	{"C18", re(`(?:^|/)loki$`)},
	{"C19", re(`(?:^|/)tempo$`)},
	{"C20", re(`(?:^|/)(?:mimir|cortex)$`)},
	{"C26", re(`(?:^|/)azure-cli$`)},
}

// Image returns the row of the tool that an image is of, or "".
func Image(image string) string {
	name, _ := ImageVersion(image)
	for _, i := range images {
		if i.name.MatchString(name) {
			return i.row
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
