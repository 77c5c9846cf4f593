//go:build noobjectid

package main

import "github.com/Azure/azure-sdk-for-go/sdk/azidentity"

// objectID is not what these versions take; nothing asks for it.
func objectID(string) azidentity.ManagedIDKind { return nil }
