package e2e_test

import (
	"testing"

	"github.com/taskgate/taskgate/e2e/testbed"
	"github.com/taskgate/taskgate/internal/recordertest"
	"github.com/taskgate/taskgate/recorder"
)

// storeContract runs the recorder's contract against the store of a testbed,
// through the credentials that its broker and its auditors have.
func storeContract(t *testing.T, store testbed.ObjectStore) {
	open := func(user testbed.Credentials) *recorder.S3 {
		s3, err := recorder.NewS3(recorder.S3Config{
			Endpoint: store.Endpoint, Bucket: store.Bucket, Region: store.Region, AccessKey: user.Key, SecretKey: user.Secret,
		})
		if err != nil {
			t.Fatal(err)
		}
		return s3
	}
	recordertest.StoreContract(t, func() (recorder.Store, recorder.Bucket) { return open(store.Broker), open(store.Auditor) })
}
