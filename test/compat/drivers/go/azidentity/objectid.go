//go:build !v0 && !noobjectid

package main

import "github.com/Azure/azure-sdk-for-go/sdk/azidentity"

func objectID(id string) azidentity.ManagedIDKind { return azidentity.ObjectID(id) }
