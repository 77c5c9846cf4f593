// Package chart has Helm judge charts/imds-oidc-proxy and renders it: what comes out
// for several sets of values is compared with what is in testdata, and with
// deploy/webhook/webhook.yaml. The tests are those of the build tag chart, since Helm
// takes minutes to build the first time; `make test-chart` runs them, `make chart`
// writes what they compare. test/deploy/manifests reads the rendered objects.
package chart
