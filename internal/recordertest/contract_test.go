package recordertest_test

import (
	"os"
	"testing"

	"github.com/taskgate/taskgate/internal/recordertest"
	"github.com/taskgate/taskgate/recorder"
)

func TestMemoryStore(t *testing.T) {
	recordertest.StoreContract(t, func() (recorder.Store, recorder.Bucket) {
		store := recordertest.NewMemoryStore(t)
		return store, store
	})
}

// TestS3 runs against the store a testbed's environment names.
func TestS3(t *testing.T) {
	if os.Getenv("TASKGATE_S3_ENDPOINT") == "" {
		t.Skip("TASKGATE_S3_ENDPOINT is not set; `make up` writes .testbed/env")
	}
	recordertest.StoreContract(t, func() (recorder.Store, recorder.Bucket) {
		return s3(t, "BROKER"), s3(t, "AUDITOR")
	})
}

func s3(t *testing.T, role string) *recorder.S3 {
	store, err := recorder.NewS3(recorder.S3Config{
		Endpoint: os.Getenv("TASKGATE_S3_ENDPOINT"), Bucket: os.Getenv("TASKGATE_S3_BUCKET"),
		AccessKey: os.Getenv("TASKGATE_S3_" + role + "_KEY"), SecretKey: os.Getenv("TASKGATE_S3_" + role + "_SECRET"),
	})
	if err != nil {
		t.Fatal(err)
	}
	return store
}
