// Package entra is a stand-in for Microsoft Entra ID and for the cluster's OIDC
// issuer.
package entra
