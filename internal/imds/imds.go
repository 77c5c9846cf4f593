// Package imds answers as the Azure instance metadata service does.
package imds
