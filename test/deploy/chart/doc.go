// Package chart tests the Helm chart in charts/imds-oidc-proxy. It runs helm lint, and compares the
// output of helm template for several files of values with the files in testdata and with
// deploy/webhook/webhook.yaml. The tests need the build tag chart, because Helm takes minutes to build
// the first time. `make test-chart` runs them, and `make chart` writes the files.
// test/deploy/manifests tests the rendered objects.
package chart
