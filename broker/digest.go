package broker

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash"
)

// callElements is everything that makes a gated call exactly the one that people
// said yes to. Whatever else a request carries (its method where two mean the
// same, the encoding it wants answers in, its user agent) changes nothing in the
// cluster.
type callElements struct {
	cluster, agent, grantUID                                     string
	verb, group, version, resource, subresource, namespace, name string
	query                                                        string // canonical
	mediaType                                                    string
	body                                                         []byte
	exec                                                         []string // container, flags and command of a stream, in order
	targetUID                                                    string
	targetVersion                                                string // resourceVersion, where the gate pins it
}

// digestScheme begins what is hashed, so that no digest of something else can be
// one of a call, nor one of a later scheme.
const digestScheme = "taskgate.dev/v1alpha1 call"

// digest is the SHA-256 of a call in hexadecimal. Every element is preceded by
// its length, and lists by their count, so that no two different calls are
// written alike.
func (e *callElements) digest() string {
	sum := sha256.New()
	for _, element := range []string{
		digestScheme, e.cluster, e.agent, e.grantUID,
		e.verb, e.group, e.version, e.resource, e.subresource, e.namespace, e.name,
		e.query, e.mediaType,
	} {
		hashElement(sum, []byte(element))
	}
	hashElement(sum, e.body)
	hashLength(sum, len(e.exec))
	for _, element := range e.exec {
		hashElement(sum, []byte(element))
	}
	hashElement(sum, []byte(e.targetUID))
	hashElement(sum, []byte(e.targetVersion))
	return hex.EncodeToString(sum.Sum(nil))
}

func hashElement(sum hash.Hash, element []byte) {
	hashLength(sum, len(element))
	sum.Write(element) // a hash never fails
}

func hashLength(sum hash.Hash, length int) {
	sum.Write(binary.BigEndian.AppendUint64(nil, uint64(length)))
}
