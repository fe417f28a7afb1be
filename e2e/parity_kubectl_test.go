package e2e_test

import "testing"

// settings is a config map to work with.
const settings = `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"settings","labels":{"app":"shop"}},"data":{"colour":"blue"}}`

// TestParityOfKubectl plays what people do with kubectl. The scenes do not touch
// each other.
func TestParityOfKubectl(t *testing.T) {
	t.Parallel()
	scenes := []struct {
		name  string
		steps []step
	}{
		{"read", readSteps},
		{"write", writeSteps},
		{"apply", applySteps},
		{"patch", patchSteps},
		{"delete", deleteSteps},
		{"errors", errorSteps},
		{"rollout", rolloutSteps},
		{"discover", discoverySteps},
		{"custom", customSteps},
	}
	sharedStack(t).apply(t, parityDefinition)
	for _, scene := range scenes {
		t.Run(scene.name, func(t *testing.T) {
			t.Parallel()
			play(t, sides(t, scene.name), scene.steps)
		})
	}
}

var readSteps = []step{
	{run: `for i in 1 2 3 4 5; do echo "---"; echo '{apiVersion: v1, kind: ConfigMap, metadata: {name: m'$i', labels: {odd: "'$((i%2))'"}}, data: {i: "'$i'"}}'; done | kubectl create -f -`, says: "configmap/m5 created"},
	{run: `kubectl create secret generic db --from-literal=password=correct-horse`, says: "secret/db created"},
	{run: `kubectl run web --image=nginx:1 --labels=app=web --port=80 && kubectl wait --for=condition=Ready pod/web --timeout=20s`, says: "condition met"},
	{run: `kubectl get configmaps`, says: "m3"},
	{run: `kubectl get cm,secrets,pods --show-labels`, says: "odd=1"},
	{run: `kubectl get pods -o wide`, says: "kwok-0"},
	{run: `kubectl get pod web -o yaml`, says: "containerStatuses"},
	{run: `kubectl get pod web -o json --show-managed-fields`, says: `"manager": "kubectl-run"`},
	{run: `kubectl get cm -o name`, says: "configmap/m5"},
	{run: `kubectl get cm -o jsonpath='{range .items[*]}{.metadata.name}={.data.i}{"\n"}{end}'`, says: "m4=4"},
	{run: `kubectl get cm -o custom-columns=NAME:.metadata.name,I:.data.i --sort-by=.data.i --no-headers`, says: "m5"},
	{run: `kubectl get cm -o go-template='{{range .items}}{{.metadata.name}} {{end}}'`, says: "m1 m2"},
	{run: `kubectl get cm -l odd=1 -L odd`, says: "m3"},
	{run: `kubectl get cm -l 'odd in (0),missing notin (x)' -o name`, says: "m4"},
	{run: `kubectl get cm --field-selector metadata.name=m2 -o name`, says: "m2"},
	{run: `kubectl get pods --field-selector status.phase=Running,spec.nodeName=kwok-0`, says: "web"},
	{run: `kubectl get cm --field-selector data.i=1`, says: "not a known field selector", code: 1},
	{run: `kubectl get cm --chunk-size=2 -o name`, says: "m5"},
	{run: `kubectl get cm --chunk-size=2`, says: "m5"},
	{run: `kubectl get --raw "/api/v1/namespaces/$ns/configmaps?limit=2"`, says: `"remainingItemCount":4`},
	{run: `kubectl get --raw "/api/v1/namespaces/$ns/configmaps/m1?pretty=true"`, says: `"i": "1"`},
	{run: `kubectl get secret db -o jsonpath='{.data.password}' | base64 -d`, says: "correct-horse"},
	{run: `kubectl get pods -A -l app=web --field-selector metadata.namespace="$ns"`, says: "web"},
	{run: `kubectl get all`, says: "pod/web"},
	{run: `kubectl get pod web --subresource=status -o jsonpath='{.status.phase}'`, says: "Running"},
	{run: `kubectl get deployments`, says: "No resources found"},
	{run: `kubectl get namespace "$ns" node/kwok-0 --ignore-not-found -o name`, says: "there is no need", code: 1},
	{run: `kubectl get namespace/"$ns" node/kwok-0 -o name`, says: "node/kwok-0"},
	{run: `kubectl describe cm m1`, says: "BinaryData"},
	{run: `kubectl describe secret db`, says: "13 bytes"},
	{run: `kubectl describe node kwok-0 | head -12`, says: "kwok-0"},
	{run: `kubectl describe pod web | sed '/^Events:/,$d'`, says: "nginx:1"},
	{run: `kubectl get events --field-selector involvedObject.name=web -o jsonpath='{.items[*].reason}'`, says: "Scheduled"},
	{run: `kubectl events --for pod/web`, says: "Successfully assigned"},
	{run: `kubectl get storageclasses,priorityclasses`, says: "system-node-critical"},
	{run: `kubectl get --raw /version`, says: `"gitVersion"`},
	{run: `kubectl get serviceaccount default -o name`, says: "serviceaccount/default"},
}

var writeSteps = []step{
	{run: `echo '` + settings + `' | kubectl create -f -`, says: "created"},
	{run: `kubectl create configmap dry --from-literal=a=b --dry-run=server -o yaml`, says: "uid: "},
	{run: `kubectl create configmap dry --from-literal=a=b --dry-run=client -o yaml`, says: "name: dry"},
	{run: `kubectl get cm dry`, says: "NotFound", code: 1},
	{run: `kubectl create deployment dry --image=nginx --dry-run=server`, says: "(server dry run)"},
	{run: `kubectl label cm settings tier=back && kubectl get cm settings --show-labels`, says: "tier=back"},
	{run: `kubectl label cm settings tier=front`, says: "--overwrite is false", code: 1},
	{run: `kubectl label cm settings tier=front --overwrite && kubectl label cm settings app-`, says: "unlabeled"},
	{run: `kubectl label cm settings tier=other --overwrite --resource-version=1`, says: "Conflict", code: 1},
	{run: `kubectl annotate cm --all note='a b' && kubectl get cm settings -o yaml`, says: "note: a b"},
	{run: `kubectl annotate cm settings note-`, says: "annotated"},
	{run: `KUBE_EDITOR="sed -i s/blue/green/" kubectl edit cm settings && kubectl get cm settings -o yaml`, says: "colour: green"},
	{run: `KUBE_EDITOR="sed -i s/blue/green/" kubectl edit cm settings`, says: "no changes made"},
	{run: `KUBE_EDITOR="sed -i s/^data:/data:/" kubectl edit deployment absent`, says: "NotFound", code: 1},
	{run: `kubectl get cm settings -o json | sed s/green/red/ | kubectl replace -f - && kubectl get cm settings -o jsonpath='{.data}'`, says: "red"},
	{run: `kubectl get cm settings -o json >old; kubectl label cm settings x=y; kubectl replace -f old`, says: "the object has been modified", code: 1},
	{run: `echo '` + settings + `' | kubectl replace --force -f -`, says: "replaced"},
	{run: `kubectl create role reader --verb=get --resource=pods && kubectl create rolebinding reader --role=reader --user=somebody && kubectl describe rolebinding reader`, says: "somebody"},
	{run: `kubectl create serviceaccount builder && kubectl create quota q --hard=configmaps=100 && kubectl describe quota q | head -3`, says: "NAMESPACE"},
	{run: `kubectl create job once --image=busybox -- true && kubectl wait --for=condition=complete job/once --timeout=30s`, says: "condition met"},
	{run: `kubectl create cronjob hourly --image=busybox --schedule='0 * * * *' -- true && kubectl create job --from=cronjob/hourly now && kubectl get cronjob`, says: "0 * * * *"},
	{run: `kubectl expose pod absent --port=80`, says: "NotFound", code: 1},
	{run: `kubectl create service clusterip shop --tcp=80:8080 && kubectl get svc shop -o wide`, says: "80/TCP"},
	{run: `kubectl set env cronjob/hourly A=b && kubectl set env cronjob/hourly --list`, says: "A=b"},
}

// configMaps are manifests whose labels kubectl apply --prune selects by.
const configMaps = `m() { for name in "$@"; do echo "---"; echo "{apiVersion: v1, kind: ConfigMap, metadata: {name: $name, labels: {set: one}}, data: {colour: ${colour-blue}, size: ${size-big}}}"; done; }; `

var applySteps = []step{
	{run: configMaps + `m a b | kubectl apply -f -`, says: "configmap/b created"},
	{run: configMaps + `m a b | kubectl apply -f -`, says: "unchanged"},
	{run: configMaps + `colour=green m a b | kubectl apply -f - -o yaml`, says: "colour: green"},
	{run: configMaps + `m a | kubectl apply -f - --dry-run=server`, says: "configured (server dry run)"},
	{run: `kubectl apply view-last-applied cm a`, says: "colour: green"},
	{run: configMaps + `m a | kubectl apply set-last-applied -f - && kubectl apply view-last-applied cm/a -o json`, says: `"blue"`},
	{run: configMaps + `m a | kubectl diff -f -`, says: "+  colour: blue", code: 1},
	{run: configMaps + `colour=green m b | kubectl diff -f - && echo none`, says: "none"},
	{run: configMaps + `m fresh | kubectl diff -f -`, says: "+kind: ConfigMap", code: 1},
	{run: configMaps + `m a | kubectl diff --server-side --field-manager=other -f -`, says: `conflict with "kubectl-client-side-apply"`, code: 2},
	{run: configMaps + `m b c | kubectl apply --prune -l set=one --prune-allowlist=core/v1/ConfigMap -f -`, says: "configmap/a pruned"},
	{run: `kubectl get cm -l set=one -o name`, says: "configmap/c"},
	{run: `kubectl create cm bare --from-literal=x=y; echo '{apiVersion: v1, kind: ConfigMap, metadata: {name: bare}, data: {x: z}}' | kubectl apply -f -`, says: "missing the kubectl.kubernetes.io/last-applied-configuration"},
	{run: configMaps + `m s | kubectl apply --server-side --field-manager=one -f -`, says: "serverside-applied"},
	{run: configMaps + `colour=red m s | kubectl apply --server-side --field-manager=two -f -`, says: `conflict with "one": .data.colour`, code: 1},
	{run: configMaps + `colour=red size=small m s | kubectl apply --server-side --field-manager=two -f -`, says: "conflicts with", code: 1},
	{run: configMaps + `colour=red m s | kubectl apply --server-side --field-manager=two --force-conflicts -f - && kubectl get cm s -o yaml --show-managed-fields`, says: "manager: two"},
	{run: configMaps + `m b | kubectl apply --server-side -f - -o json`, says: `"colour": "blue"`},
	{run: configMaps + `m s | kubectl apply --server-side --field-manager=two --dry-run=server -f -`, says: "serverside-applied (server dry run)"},
	{run: `echo '{apiVersion: v1, kind: ConfigMap, metadata: {name: strict}, dta: {}}' | kubectl apply -f -`, says: `unknown field "dta"`, code: 1},
	{run: `echo '{apiVersion: v1, kind: ConfigMap, metadata: {name: warn}, dta: {}}' | kubectl apply --validate=warn -f -`, says: `Warning: unknown field "dta"`},
	{run: `echo '{apiVersion: v1, kind: ConfigMap, metadata: {name: ignore}, dta: {}}' | kubectl apply --validate=ignore -f -`, says: "created"},
	{run: `mkdir k; echo '{resources: [m.yaml], namePrefix: k-}' >k/kustomization.yaml; echo '{apiVersion: v1, kind: ConfigMap, metadata: {name: m}}' >k/m.yaml; kubectl apply -k k`, says: "configmap/k-m created"},
	{run: `kubectl apply edit-last-applied cm k-m -o yaml`, says: "no changes made"},
}

var patchSteps = []step{
	{run: `echo '` + settings + `' | kubectl create -f - && kubectl create deployment web --image=nginx:1 && kubectl scale deployment web --replicas=0`, says: "scaled"},
	{run: `kubectl patch cm settings --type=merge -p '{"data":{"colour":null,"size":"big"}}' -o yaml`, says: "size: big"},
	{run: `kubectl patch cm settings --type=json -p '[{"op":"test","path":"/data/size","value":"big"},{"op":"add","path":"/data/colour","value":"red"}]' -o jsonpath='{.data}'`, says: "red"},
	{run: `kubectl patch cm settings --type=json -p '[{"op":"test","path":"/data/size","value":"small"}]'`, says: "the server rejected our request", code: 1},
	{run: `kubectl patch cm settings --type=json -p '[{"op":"remove","path":"/data/none"}]'`, says: "the server rejected our request", code: 1},
	{run: `kubectl patch cm settings --type=merge -p '{"metadata":{"resourceVersion":"1"}}'`, says: "the object has been modified", code: 1},
	{run: `kubectl patch cm settings --type=merge -p '{}'`, says: "(no change)"},
	{run: `kubectl patch deployment web -p '{"spec":{"template":{"spec":{"containers":[{"name":"side","image":"busybox"}]}}}}' -o jsonpath='{.spec.template.spec.containers[*].name}'`, says: "side nginx"},
	{run: `kubectl patch deployment web -p '{"spec":{"template":{"spec":{"containers":[{"name":"side","$patch":"delete"}]}}}}' -o jsonpath='{.spec.template.spec.containers[*].name}'`, says: "nginx"},
	{run: `kubectl patch deployment web -p '{"spec":{"replicas":"many"}}'`, says: "unrecognized type: int32", code: 1},
	{run: `kubectl patch deployment web --subresource=scale --type=merge -p '{"spec":{"replicas":2}}' -o yaml`, says: "kind: Scale"},
	{run: `kubectl patch deployment web --subresource=status --type=merge -p '{"status":{"collisionCount":7}}' -o jsonpath='{.status.collisionCount}'`, says: "7"},
	{run: `kubectl patch deployment web --type=merge -p '{"spec":{"replicas":1}}' --dry-run=server -o jsonpath='{.spec.replicas}'`, says: "1"},
	{run: `kubectl set image deployment/web nginx=nginx:2 && kubectl get deployment web -o jsonpath='{.spec.template.spec.containers[0].image}'`, says: "nginx:2"},
	{run: `kubectl set image deployment/web absent=nginx:2`, says: "unable to find container", code: 1},
	{run: `kubectl set resources deployment web --limits=cpu=200m --requests=memory=1Mi && kubectl get deployment web -o jsonpath='{..resources}'`, says: "200m"},
}

var deleteSteps = []step{
	{run: `for i in 1 2 3 4 5 6; do kubectl create cm m$i --from-literal=i=$i; done; kubectl label cm m1 m2 m3 set=one`, says: "m6 created"},
	{run: `kubectl delete cm m1`, says: "deleted"},
	{run: `kubectl delete cm m1`, says: "NotFound", code: 1},
	{run: `kubectl delete cm m1 m2 --ignore-not-found`, says: `"m2" deleted`},
	{run: `kubectl delete cm m4 --dry-run=server && kubectl get cm m4 -o name`, says: "(server dry run)"},
	{run: `kubectl delete cm -l set=one -o name`, says: "configmap/m3"},
	{run: `kubectl delete cm --field-selector metadata.name=m4`, says: "m4"},
	{run: `kubectl delete cm m5 --wait=false --grace-period=0 --force`, says: "Immediate deletion"},
	{run: `kubectl delete --raw "/api/v1/namespaces/$ns/configmaps?fieldSelector=metadata.name%3Dm6"`, says: `"kind":"ConfigMapList"`},
	{run: `kubectl run p --image=nginx && kubectl wait --for=condition=Ready pod/p --timeout=20s && kubectl delete pod p --wait`, says: `pod "p" deleted`},
	{run: `kubectl run p --image=nginx && kubectl delete pod p --wait=false && kubectl wait --for=delete pod/p --timeout=20s && echo gone`, says: "gone"},
	{run: `kubectl wait --for=delete pod/p --timeout=5s && echo at once`, says: "at once"},
	{run: `kubectl create deployment web --image=nginx && kubectl wait --for=condition=Available deployment/web --timeout=30s && kubectl delete deployment web --cascade=orphan && kubectl get rs -l app=web -o name`, says: "replicaset.apps/web-"},
	{run: `kubectl delete rs -l app=web --cascade=foreground && kubectl get pods,rs -l app=web`, says: "No resources found"},
	{run: `kubectl create deployment web --image=nginx && kubectl wait --for=condition=Available deployment/web --timeout=30s && kubectl delete deployment web --cascade=background && kubectl wait --for=delete rs,pods -l app=web --timeout=30s; kubectl get pods,rs`, says: "No resources found"},
	{run: `kubectl delete cm --all && kubectl wait --for=create cm/kube-root-ca.crt --timeout=20s`, says: "condition met"},
	{run: `kubectl create cm held && kubectl patch cm held -p '{"metadata":{"finalizers":["example.org/hold"]}}' && kubectl delete cm held --timeout=2s`, says: "timed out waiting", code: 1},
	{run: `kubectl patch cm held -p '{"metadata":{"finalizers":null}}'; kubectl wait --for=delete cm/held --timeout=20s; kubectl get cm held`, says: "NotFound", code: 1},
	{run: `kubectl delete namespace absent`, says: `namespaces "absent" not found`, code: 1},
	{run: `kubectl create namespace "$ns-x" && kubectl delete namespace "$ns-x" --timeout=30s && kubectl get namespace "$ns-x"`, says: "NotFound", code: 1},
}

var errorSteps = []step{
	{run: `kubectl get pod absent`, says: `Error from server (NotFound): pods "absent" not found`, code: 1},
	{run: `kubectl get deployments.apps absent -o yaml`, says: `deployments.apps "absent" not found`, code: 1},
	{run: `kubectl get gizmos`, says: `the server doesn't have a resource type "gizmos"`, code: 1},
	{run: `kubectl create cm twice; kubectl create cm twice`, says: `configmaps "twice" already exists`, code: 1},
	{run: `kubectl create cm 'Bad_Name'`, says: "is invalid: metadata.name", code: 1},
	{run: `kubectl -n absent create cm any`, says: `namespaces "absent" not found`, code: 1},
	{run: `kubectl -n absent get cm`, says: "No resources found in absent"},
	{run: `kubectl run bad --image=`, says: "--image is required", code: 1},
	{run: `echo '{apiVersion: v1, kind: Pod, metadata: {name: empty}, spec: {containers: []}}' | kubectl create -f -`, says: "spec.containers: Required value", code: 1},
	{run: `echo '{apiVersion: v1, kind: Pod, metadata: {name: typed}, spec: {containers: [{name: 1, image: []}]}}' | kubectl create --validate=false -f -`, says: "BadRequest", code: 1},
	{run: `echo '{apiVersion: apps/v1, kind: Deployment, metadata: {name: d}, spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: c}}, spec: {containers: [{name: c, image: i}]}}}}' | kubectl create -f -`, says: "`selector` does not match template `labels`", code: 1},
	{run: `echo '{apiVersion: apps/v2, kind: Deployment, metadata: {name: d}}' | kubectl create -f -`, says: "no matches for kind", code: 1},
	{run: `echo '{"apiVersion":"v1","kind":"Pod","metadata":{"name":"x"}}' | kubectl create --raw "/api/v1/namespaces/$ns/configmaps" -f -`, says: "cannot be handled as a ConfigMap", code: 1},
	{run: `kubectl create deployment d --image=nginx && kubectl patch deployment d -p '{"spec":{"selector":{"matchLabels":{"x":"y"}}}}'`, says: "field is immutable", code: 1},
	{run: `kubectl logs absent`, says: `pods "absent" not found`, code: 1},
	{run: `kubectl wait --for=condition=Ready pod/absent --timeout=1s`, says: "NotFound", code: 1},
	{run: `kubectl wait --for=condition=Never deployment/d --timeout=2s`, says: "timed out waiting for the condition", code: 1},
	{run: `kubectl rollout status deployment/absent`, says: "NotFound", code: 1},
	{run: `kubectl scale deployment d --replicas=3 --current-replicas=7`, says: "Expected replicas to be 7", code: 1},
	{run: `kubectl explain pod.spec.nothing`, says: `field "nothing" does not exist`, code: 1},
}

var rolloutSteps = []step{
	{run: `kubectl create deployment web --image=nginx:1 --replicas=2`, says: "created"},
	{run: `kubectl rollout status deployment/web --timeout=30s | tail -1`, says: "successfully rolled out"},
	{run: `kubectl wait --for=jsonpath='{.status.readyReplicas}'=2 deployment/web --timeout=30s`, says: "condition met"},
	{run: `kubectl get deployments,rs -o wide`, says: "2/2"},
	{run: `kubectl annotate deployment web kubernetes.io/change-cause=first && kubectl set image deployment/web nginx=nginx:2 && kubectl rollout status deployment/web --timeout=30s | tail -1`, says: "successfully"},
	{run: `kubectl rollout history deployment/web`, says: "first"},
	{run: `kubectl rollout history deployment/web --revision=1`, says: "nginx:1"},
	{run: `kubectl rollout undo deployment/web && kubectl rollout status deployment/web --timeout=30s | tail -1 && kubectl get deployment web -o jsonpath='{..image}'`, says: "nginx:1"},
	{run: `kubectl rollout undo deployment/web --to-revision=99`, says: "unable to find", code: 1},
	{run: `kubectl rollout pause deployment/web && kubectl rollout undo deployment/web`, says: "paused", code: 1},
	{run: `kubectl rollout resume deployment/web && kubectl scale deployment/web --replicas=3 --current-replicas=2 && kubectl rollout status deployment/web --timeout=30s | tail -1`, says: "scaled"},
	{run: `kubectl wait --for=jsonpath='{.status.readyReplicas}'=3 deployment/web --timeout=30s; kubectl get deployment web -o jsonpath='{.status.conditions[*].type} {.status.readyReplicas}'`, says: "3"},
	{run: `kubectl rollout restart deployment/web && kubectl rollout status deployment/web --timeout=30s | tail -1`, says: "restarted"},
	{run: `kubectl autoscale deployment web --min=1 --max=5 --cpu=80% && kubectl get hpa web -o jsonpath='{.spec.maxReplicas}'`, says: "5"},
	{run: `kubectl expose deployment web --port=80 --target-port=8080 && kubectl get service web -o jsonpath='{.spec.ports}'`, says: "8080"},
	{run: `kubectl describe deployment web | sed '/^NewReplicaSet:/,$d;/^OldReplicaSets:/d'`, says: "StrategyType"},
	{run: `kubectl get endpointslices -l kubernetes.io/service-name=web -o jsonpath='{.items[*].ports[*].port}'`, says: "8080"},
}

var discoverySteps = []step{
	{run: `kubectl explain pod.spec.containers`, says: "imagePullPolicy"},
	{run: `kubectl explain deployment.spec --recursive`, says: "maxUnavailable"},
	{run: `kubectl explain cm --api-version=v1`, says: "binaryData"},
	{run: `kubectl explain crates.parity.example.org.spec --recursive`, says: "weight"},
	{run: `kubectl api-resources`, says: "deployments"},
	{run: `kubectl api-resources -o wide --namespaced=false --verbs=list,get --sort-by=name`, says: "namespaces"},
	{run: `kubectl api-resources --api-group=parity.example.org --cached -o name`, says: "crates.parity.example.org"},
	{run: `kubectl api-versions`, says: "apps/v1"},
	{run: `kubectl version -o yaml`, says: "serverVersion"},
	{run: `kubectl get --raw /apis`, says: `"APIGroupList"`},
	{run: `kubectl get --raw /apis/apps`, says: `"APIGroup"`},
	{run: `kubectl get --raw /apis/apps/v1`, says: `"deployments/scale"`},
	{run: `kubectl get --raw /api`, says: `"APIVersions"`},
	{run: `kubectl get --raw /openapi/v3 | tr , '\n' | sed s/hash=.*// `, says: "apis/apps/v1"},
	{run: `kubectl get --raw /openapi/v3/apis/apps/v1 | sha256sum`, says: "-"},
	{run: `kubectl auth can-i get pods`, says: "yes"},
	{run: `kubectl auth can-i get pods/log --namespace=kube-system -q && echo quiet`, says: "quiet"},
	{run: `kubectl auth can-i delete deployments.apps/web`, says: "yes"},
	{run: `kubectl auth can-i get gizmos`, says: "the server doesn't have a resource type 'gizmos'"},
	{run: `kubectl auth can-i get /version`, says: "yes"},
}

// parityDefinition is a custom resource with all there is to one.
const parityDefinition = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: crates.parity.example.org}
spec:
  group: parity.example.org
  scope: Namespaced
  names: {plural: crates, singular: crate, kind: Crate, shortNames: [cr8], categories: [parity]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}, scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas}}
    additionalPrinterColumns: [{name: Weight, type: integer, jsonPath: .spec.weight}, {name: Full, type: string, jsonPath: .status.full, priority: 1}]
    selectableFields: [{jsonPath: .spec.weight}]
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [weight]
            properties:
              weight: {type: integer, minimum: 1, description: how much it weighs}
              replicas: {type: integer}
            x-kubernetes-validations: [{rule: "self.weight == oldSelf.weight || self.weight < 100", message: too heavy}]
          status: {type: object, properties: {full: {type: string}, replicas: {type: integer}, conditions: {type: array, items: {type: object, x-kubernetes-preserve-unknown-fields: true}}}}
`

const crate = `c() { echo "{apiVersion: parity.example.org/v1, kind: Crate, metadata: {name: $1}, spec: {weight: $2, replicas: 1}}"; }; `

var customSteps = []step{
	{run: crate + `c one 1 | kubectl create -f - && c two 2 | kubectl apply -f - && c three 3 | kubectl apply --server-side -f -`, says: "serverside-applied"},
	{run: `kubectl get cr8`, says: "WEIGHT"},
	{run: `kubectl get crates -o wide --field-selector spec.weight=2`, says: "two"},
	{run: `kubectl get parity -o yaml --show-managed-fields`, says: "kind: Crate"},
	{run: `kubectl describe crate one`, says: "Weight"},
	{run: crate + `c bad 0 | kubectl create -f -`, says: "should be greater than or equal to 1", code: 1},
	{run: crate + `c bad '"x"' | kubectl apply -f -`, says: "must be of type integer", code: 1},
	{run: crate + `c one 200 | kubectl replace -f -`, says: "too heavy", code: 1},
	{run: `kubectl patch crate one --type=merge -p '{"spec":{"wieght":5}}'`, says: `unknown field "spec.wieght"`},
	{run: `kubectl patch crate one -p '{"spec":{"weight":5}}'`, says: "application/strategic-merge-patch+json is not supported", code: 1},
	{run: `kubectl patch crate one --type=json -p '[{"op":"replace","path":"/spec/weight","value":5}]' -o yaml`, says: "weight: 5"},
	{run: `kubectl patch crate one --subresource=status --type=merge -p '{"status":{"full":"no","conditions":[{"type":"Packed","status":"True"}]}}'`, says: "patched"},
	{run: `kubectl wait --for=condition=Packed crate/one --timeout=10s && kubectl wait --for=jsonpath='{.status.full}'=no crate/one --timeout=10s`, says: "condition met"},
	{run: `kubectl scale crate one --replicas=4 && kubectl get crate one --subresource=scale -o jsonpath='{.spec.replicas}'`, says: "4"},
	{run: `kubectl diff -f - <<<'{apiVersion: parity.example.org/v1, kind: Crate, metadata: {name: two}, spec: {weight: 9}}'`, says: "+  weight: 9", code: 1},
	{run: `kubectl label crates --all a=b && kubectl get crates -l a=b -o name`, says: "three"},
	{run: `kubectl delete crates --all`, says: "three"},
}
