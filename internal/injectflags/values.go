package injectflags

import (
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// clouds are Entra's endpoints by the names that azure-workload-identity's webhook
// takes, in lower case: it compares without regard to case, and so does this.
var clouds = map[string]string{
	"azurepubliccloud":       "https://login.microsoftonline.com/",
	"azurecloud":             "https://login.microsoftonline.com/",
	"azureusgovernmentcloud": "https://login.microsoftonline.us/",
	"azureusgovernment":      "https://login.microsoftonline.us/",
	"azurechinacloud":        "https://login.chinacloudapi.cn/",
}

func authorityHost(cloud string) (string, error) {
	host, known := clouds[strings.ToLower(cloud)]
	if !known {
		return "", errors.New("say AzurePublicCloud, AzureUSGovernmentCloud or AzureChinaCloud, or --authority-host for another")
	}
	return host, nil
}

// parseResources reads what a container asks for, strictly: a limit that is
// misspelt would be none.
func parseResources(text string) (*corev1.ResourceRequirements, error) {
	if text == "" {
		return nil, nil
	}
	resources := new(corev1.ResourceRequirements)
	if err := yaml.UnmarshalStrict([]byte(text), resources); err != nil {
		return nil, fmt.Errorf(`say it in JSON, such as {"requests":{"cpu":"5m","memory":"16Mi"},"limits":{"memory":"64Mi"}}: %w`, oneLine(err))
	}
	return resources, nil
}

// parseLabels reads a label selector. Nil: none was given; "*" selects everything,
// for which a selector's own syntax has no words that can be told from nothing.
func parseLabels(text string) (*metav1.LabelSelector, error) {
	switch text {
	case "":
		return nil, nil
	case "*":
		return &metav1.LabelSelector{}, nil
	}
	selector, err := metav1.ParseToLabelSelector(text)
	if err != nil {
		return nil, fmt.Errorf(`say a selector such as use=identity-binding, or "*" for all: %w`, oneLine(err))
	}
	return selector, nil
}

// oneLine keeps the text of an error from a parser within the line of ours.
func oneLine(err error) error {
	return errors.New(strings.Join(strings.Fields(err.Error()), " "))
}
