package broker

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/taskgate/taskgate/authz"
)

// target is what a gated call is about, as it was a moment ago. The zero target is
// nothing: a create, or a list.
type target struct {
	uid, version string
	object       *metav1.PartialObjectMetadata // nil if there is none
	// objects are those a deletecollection would delete; uid is then the hash of
	// their UIDs, so that an approval is good for exactly those.
	objects []string
	// missing is the cluster's own answer if the call needs an object that is not
	// there.
	missing *refusal
}

// Only metadata is asked for: what is in a Secret need not be known to bind it.
const (
	metadataOnly     = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
	metadataListOnly = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
)

// lookAtTarget reads what the call is about, as a preview.
//
// Fails closed: an object that cannot be seen cannot be bound to an approval, and
// the call is refused.
func (x *exchange) lookAtTarget() (*target, *refusal) {
	if x.request.Call.Verb == authz.DeleteCollection {
		return x.lookAtCollection()
	}
	path := x.request.ObjectPath()
	if path == "" {
		return &target{}, nil
	}
	seen, r := x.look(path, nil, metadataOnly)
	if r != nil {
		return nil, r
	}
	if seen.status == http.StatusNotFound {
		if x.request.Call.Creates {
			return &target{}, nil
		}
		return &target{missing: clusterRefused(seen)}, nil
	}
	object := new(metav1.PartialObjectMetadata)
	if r := x.readSight(seen, object); r != nil {
		return nil, r
	}
	if object.UID == "" {
		return nil, x.unbindable()
	}
	return &target{uid: string(object.UID), version: object.ResourceVersion, object: object}, nil
}

func (x *exchange) lookAtCollection() (*target, *refusal) {
	seen, r := x.look(x.request.Path(), x.request.Selection(), metadataListOnly)
	if r != nil {
		return nil, r
	}
	list := new(metav1.PartialObjectMetadataList)
	if r := x.readSight(seen, list); r != nil {
		return nil, r
	}
	found := &target{objects: []string{}}
	uids := make([]string, 0, len(list.Items))
	for i := range list.Items {
		object := &list.Items[i]
		if object.UID == "" {
			return nil, x.unbindable()
		}
		uids = append(uids, string(object.UID))
		found.objects = append(found.objects, strings.TrimPrefix(object.Namespace+"/"+object.Name, "/"))
	}
	slices.Sort(uids)
	slices.Sort(found.objects)
	sum := sha256.New()
	for _, uid := range uids {
		hashElement(sum, []byte(uid))
	}
	found.uid = hex.EncodeToString(sum.Sum(nil))
	return found, nil
}

// readSight decodes the answer to a preview, or says why the call cannot go on
// without it.
func (x *exchange) readSight(seen *sight, into any) *refusal {
	switch {
	case seen.status == http.StatusForbidden:
		r := refuse(authz.UpstreamDenied, "Preview", http.StatusForbidden,
			"an approval is bound to the objects it is about, so the broker has to see them first, and the cluster refused that. Next: ask an operator to allow %s in the AgentPolicy %s too, and to run: taskgate policy rbac %s",
			readingVerb(x.request.Call.Verb)+" "+x.request.Call.Resource, x.decision.Grant.Policy, x.decision.Grant.Policy)
		return x.denied(r)
	case seen.status == http.StatusNotFound:
		return x.denied(clusterRefused(seen))
	case seen.status != http.StatusOK:
		return x.unbindable()
	}
	if err := json.Unmarshal(seen.body, into); err != nil {
		return x.unbindable()
	}
	return nil
}

func readingVerb(verb authz.Verb) string {
	if verb == authz.DeleteCollection {
		return authz.List.String()
	}
	return authz.Get.String()
}

func (x *exchange) unbindable() *refusal {
	return x.denied(unavailable(authz.NotReady, "Preview", "what the call is about could not be read, and an approval is bound to it. Next: repeat the same command in a few seconds"))
}

// clusterRefused is the cluster's own answer to a call that it would refuse, so
// that nobody is asked about it.
func clusterRefused(seen *sight) *refusal {
	said := clusterStatus(seen.body)
	r := refuse(authz.UpstreamDenied, "", seen.status, "the cluster itself would refuse this: %s", said.Message)
	r.details, r.word = said.Details, said.Reason
	return r
}
