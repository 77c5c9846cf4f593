package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"imds-oidc-proxy/test/cluster"
)

const (
	// workloads is how many Deployments a namespace has, each with a ReplicaSet, a pod, a service account
	// and a ConfigMap.
	workloads = 10

	// atATime is how many objects are created at the same time.
	atATime = 16

	// createTimeout bounds the creation of all objects, which takes two minutes on two cores.
	createTimeout = 20 * time.Minute
)

// definitions are the custom resources of the cluster.
var definitions = []struct{ group, kind string }{
	{"aadpodidentity.k8s.io", "AzureIdentity"}, {"aadpodidentity.k8s.io", "AzureIdentityBinding"}, {"secrets-store.csi.x-k8s.io", "SecretProviderClass"},
}

// ofCluster is the daemon of aad-pod-identity.
const ofCluster = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: nmi, namespace: kube-system}
spec:
  selector: {matchLabels: {app: nmi}}
  template:
    metadata: {labels: {app: nmi}}
    spec: {containers: [{name: nmi, image: mcr.microsoft.com/oss/azure/aad-pod-identity/nmi:v1.8.17}]}
`

// ofNamespace are the objects of a namespace, in the order of their creation, and ofWorkload those of a
// workload. NS and APP are the names.
const ofNamespace = `
apiVersion: v1
kind: LimitRange
metadata: {name: limits, namespace: NS}
spec: {limits: [{type: Container, default: {memory: 256Mi}, defaultRequest: {memory: 64Mi}}]}
---
apiVersion: v1
kind: ResourceQuota
metadata: {name: quota, namespace: NS}
spec: {hard: {count/jobs.batch: 100}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: view, namespace: NS}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: view}
subjects: [{kind: ServiceAccount, name: default}]
---
apiVersion: aadpodidentity.k8s.io/v1
kind: AzureIdentity
metadata: {name: NS, namespace: NS}
spec: {type: 0, clientID: GUID, resourceID: /subscriptions/99999999-9999-4999-8999-999999999999/resourceGroups/large/providers/Microsoft.ManagedIdentity/userAssignedIdentities/NS}
---
apiVersion: aadpodidentity.k8s.io/v1
kind: AzureIdentityBinding
metadata: {name: NS, namespace: NS}
spec: {azureIdentity: NS, selector: NS}
---
apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata: {name: vault, namespace: NS}
spec: {provider: azure, parameters: {usePodIdentity: "true", keyvaultName: vault, tenantId: 22222222-2222-4222-8222-222222222222}}
`

const ofWorkload = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: APP, namespace: NS}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: APP, namespace: NS}
data: {application.yaml: "TEXT", LOG_LEVEL: info}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: APP, namespace: NS, labels: {app: APP}}
spec: {replicas: 1, selector: {matchLabels: {app: APP}}, template: {metadata: {labels: {LABELS}}, spec: SPEC}}
---
apiVersion: apps/v1
kind: ReplicaSet
metadata: {name: APP-5d4f8c7b9, namespace: NS, labels: {app: APP}, ownerReferences: [{apiVersion: apps/v1, kind: Deployment, name: APP, uid: 00000000-0000-4000-8000-000000000000, controller: true}]}
spec: {replicas: 1, selector: {matchLabels: {app: APP}}, template: {metadata: {labels: {LABELS}}, spec: SPEC}}
---
apiVersion: v1
kind: Pod
metadata: {name: APP-5d4f8c7b9-abcde, namespace: NS, labels: {LABELS}, ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: APP-5d4f8c7b9, uid: 00000000-0000-4000-8000-000000000000, controller: true}]}
spec: SPEC
`

// spec is a pod of a usual size. A tenth of the workloads mount secrets of a vault.
const spec = `{serviceAccountName: APP, containers: [{name: app, image: "registry.example.test/team/APP:v1.2.3", ports: [{containerPort: 8080}],
  env: [{name: HTTP_PORT, value: "8080"}, {name: LOG_LEVEL, valueFrom: {configMapKeyRef: {name: APP, key: LOG_LEVEL}}}, {name: VAULT, value: "https://APP.vault.azure.net"}],
  resources: {requests: {cpu: 10m, memory: 64Mi}, limits: {memory: 256Mi}}, readinessProbe: {httpGet: {path: /ready, port: 8080}}, livenessProbe: {httpGet: {path: /live, port: 8080}},
  securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}, volumeMounts: [{name: config, mountPath: /etc/app}]}],
  volumes: [{name: config, configMap: {name: APP}}VOLUMES]}`

const vaultVolume = `, {name: vault, csi: {driver: secrets-store.csi.k8s.io, readOnly: true, volumeAttributes: {secretProviderClass: vault}}}`

// fill creates the objects of the namespaces.
func (b *bench) fill(namespaces int) error {
	ctx, cancel := context.WithTimeout(context.Background(), createTimeout)
	defer cancel()
	for _, d := range definitions {
		k, _ := kindOf(d.group, d.kind)
		definition := cluster.Definition(schema.GroupKind{Group: d.group, Kind: d.kind}, k.Versions[0], k.Resource, "Namespaced")
		if _, err := b.cluster.Apply(ctx, definition, false); err != nil {
			return err
		}
		if err := cluster.Wait(ctx, func(ctx context.Context) error {
			_, err := b.cluster.Dynamic.Resource(resourceOf(k)).List(ctx, metav1.ListOptions{})
			return err
		}); err != nil {
			return err
		}
	}
	if err := b.create(ctx, ofCluster); err != nil {
		return err
	}
	jobs, failures := make(chan int), make(chan error, atATime)
	var workers sync.WaitGroup
	for range atATime {
		workers.Go(func() {
			for i := range jobs {
				if err := b.fillNamespace(ctx, i); err != nil {
					failures <- err
					cancel()
					return
				}
			}
		})
	}
	for i := 0; i < namespaces && ctx.Err() == nil; i++ {
		select {
		case jobs <- i:
		case <-ctx.Done():
		}
	}
	close(jobs)
	workers.Wait()
	select {
	case err := <-failures:
		return err
	default:
		return ctx.Err()
	}
}

func (b *bench) fillNamespace(ctx context.Context, i int) error {
	name := fmt.Sprintf("team-%03d", i)
	text := "{apiVersion: v1, kind: Namespace, metadata: {name: NS}}\n---\n" + ofNamespace
	for w := range workloads {
		labels, volumes := "app: APP", ""
		if w%2 == 0 {
			labels += ", aadpodidbinding: NS"
		}
		if w == 0 {
			volumes = vaultVolume
		}
		one := strings.NewReplacer("SPEC", strings.Replace(strings.ReplaceAll(spec, "\n", ""), "VOLUMES", volumes, 1), "LABELS", labels, "TEXT", strings.Repeat("key: value\\n", 50)).Replace(ofWorkload)
		text += "---\n" + strings.ReplaceAll(one, "APP", fmt.Sprintf("app-%d", w))
	}
	return b.create(ctx, strings.NewReplacer("NS", name, "GUID", fmt.Sprintf("%08d-0000-4000-8000-000000000000", i)).Replace(text))
}

// create creates the objects of a YAML stream, one after the other.
func (b *bench) create(ctx context.Context, stream string) error {
	objects, err := cluster.Objects([]byte(stream))
	if err != nil {
		return err
	}
	for _, o := range objects {
		k, known := kindOf(o.GroupVersionKind().Group, o.GetKind())
		if !known {
			return fmt.Errorf("%s: not a kind that a plan reads", o.GetKind())
		}
		resource := b.cluster.Dynamic.Resource(resourceOf(k))
		if _, err := resource.Namespace(o.GetNamespace()).Create(ctx, o, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("%s %s/%s: %w", o.GetKind(), o.GetNamespace(), o.GetName(), err)
		}
	}
	return nil
}
