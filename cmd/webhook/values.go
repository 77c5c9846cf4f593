package main

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
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

// authorityHost is the endpoint of a cloud.
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

func checkAddress(address string) error {
	_, port, err := net.SplitHostPort(address)
	if err == nil {
		var n int
		if n, err = strconv.Atoi(port); err == nil && n >= 0 && n <= 65535 {
			return nil
		}
	}
	return errors.New("say HOST:PORT or :PORT, such as :9443")
}

func checkName(name string) error {
	if name == "" {
		return errors.New("say a name")
	}
	if wrong := validation.IsDNS1123Subdomain(name); len(wrong) > 0 {
		return errors.New("no name of a Kubernetes object: it takes lower-case letters, digits, dots and hyphens")
	}
	return nil
}

// oneLine keeps the text of an error from a parser within the line of ours.
func oneLine(err error) error {
	return errors.New(strings.Join(strings.Fields(err.Error()), " "))
}
