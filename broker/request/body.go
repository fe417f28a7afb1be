package request

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes/scheme"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/taskgate/taskgate/authz"
)

// MaxBody is the API server's own bound on request bodies in bytes
// (k8s.io/apiserver, MaxRequestBodyBytes).
const MaxBody = 3 << 20

// Media types of bodies, as Kubernetes clients send them.
const (
	typeJSON           = "application/json"
	typeYAML           = "application/yaml"
	typeProtobuf       = "application/vnd.kubernetes.protobuf"
	typeJSONPatch      = "application/json-patch+json"
	typeMergePatch     = "application/merge-patch+json"
	typeStrategicPatch = "application/strategic-merge-patch+json"
	typeApplyPatch     = "application/apply-patch+yaml"
)

// readBody reads at most MaxBody bytes. A client that is too slow is cut off by
// the server's read deadline and refused here.
func readBody(r *http.Request) ([]byte, *Refusal) {
	if r.ContentLength > MaxBody {
		return nil, tooLarge()
	}
	if r.Body == nil || r.Body == http.NoBody {
		return nil, nil
	}
	size := max(r.ContentLength, 512)
	buffer := bytes.NewBuffer(make([]byte, 0, size))
	n, err := buffer.ReadFrom(io.LimitReader(r.Body, MaxBody+1))
	switch {
	case errors.Is(err, http.ErrHandlerTimeout), err != nil && isTimeout(err):
		return nil, refuse(authz.BadBody, "Timeout", "the body did not arrive in time").as(http.StatusRequestTimeout)
	case err != nil:
		return nil, refuse(authz.BadBody, "Incomplete", "the body could not be read to its end")
	case n > MaxBody:
		return nil, tooLarge()
	}
	return buffer.Bytes(), nil
}

func isTimeout(err error) bool {
	var timeout interface{ Timeout() bool }
	return errors.As(err, &timeout) && timeout.Timeout()
}

func tooLarge() *Refusal {
	return refuse(authz.BadBody, "Size", "the body is larger than %d bytes, more than the API server takes", MaxBody).as(http.StatusRequestEntityTooLarge)
}

// decode reads a body strictly into plain values: duplicate keys and anything
// behind the document are refused. A JSON patch is a list, all else an object.
func decode(media string, body []byte) (any, *Refusal) {
	var err error
	switch media {
	case typeProtobuf:
		body, err = protobufToJSON(body)
	case typeYAML, typeApplyPatch:
		// Read by the very library the API server uses, which bounds aliases.
		body, err = yaml.YAMLToJSONStrict(body)
	}
	if err != nil {
		return nil, refuse(authz.BadBody, "Syntax", "the body cannot be read as %s", media)
	}
	var value any
	strict, err := kjson.UnmarshalStrict(body, &value)
	if err != nil {
		return nil, refuse(authz.BadBody, "Syntax", "the body cannot be read as %s", media)
	}
	if len(strict) > 0 {
		return nil, refuse(authz.BadBody, "Duplicate", "the body holds a key twice; two readers could understand it differently")
	}
	return value, nil
}

// protobufToJSON decodes with the types of this version of Kubernetes; an object
// of a kind it does not know cannot be judged and is an error.
func protobufToJSON(body []byte) ([]byte, error) {
	object, _, err := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme).Decode(body, nil, nil)
	if err != nil {
		return nil, err
	}
	if _, unknown := object.(*runtime.Unknown); unknown {
		return nil, fmt.Errorf("unknown kind")
	}
	return runtime.Encode(scheme.Codecs.LegacyCodec(object.GetObjectKind().GroupVersionKind().GroupVersion()), object)
}
