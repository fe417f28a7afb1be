package testbed

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/taskgate/taskgate/e2e/internal/process"
	"github.com/taskgate/taskgate/e2e/internal/toolset"
)

const (
	bucketName = "taskgate"
	region     = "us-east-1"

	// storeTimeout bounds each call that sets the store up.
	storeTimeout = 15 * time.Second
)

// ObjectStore is the S3 store of a testbed. Its bucket was made with object
// lock and keeps every version. There are three users:
//
//   - Admin is the store's root: it may do everything but undo a lock.
//   - Broker may put objects with retention under v1/, read how the bucket is
//     set up (object lock, versioning, lifecycle), and delete versions under
//     v1/canary/. It may not read, list, or delete anything else.
//   - Auditor may list objects and versions and read them and their retention.
//     It may not change anything.
type ObjectStore struct {
	Endpoint string      `json:"endpoint"` // URL
	Bucket   string      `json:"bucket"`
	Region   string      `json:"region"`
	Admin    Credentials `json:"admin"`
	Broker   Credentials `json:"broker"`
	Auditor  Credentials `json:"auditor"`
}

// Credentials are those of one user of the store.
type Credentials struct {
	Key    string `json:"key"`
	Secret string `json:"secret"`
}

// Client speaks to the store as one of its users.
func (s ObjectStore) Client(user Credentials) (*minio.Client, error) {
	endpoint, err := url.Parse(s.Endpoint)
	if err != nil {
		return nil, fmt.Errorf("reading the address of the S3 store: %w", err)
	}
	client, err := minio.New(endpoint.Host, &minio.Options{
		Creds:  credentials.NewStaticV4(user.Key, user.Secret, ""),
		Secure: endpoint.Scheme == "https",
		Region: s.Region,
	})
	if err != nil {
		return nil, fmt.Errorf("making a client of the S3 store: %w", err)
	}
	return client, nil
}

// startObjectStore starts the store and sets up its bucket and users.
func (t *Testbed) startObjectStore(ctx context.Context) error {
	port, err := t.claims.Claim()
	if err != nil {
		return err
	}
	store := ObjectStore{
		Endpoint: fmt.Sprintf("http://127.0.0.1:%d", port),
		Bucket:   bucketName,
		Region:   region,
		Admin:    newCredentials("admin"),
		Broker:   newCredentials("broker"),
		Auditor:  newCredentials("auditor"),
	}
	if err := t.makeFolders("s3/data", "s3/versions", "s3/users"); err != nil {
		return err
	}
	spec, setUp := t.versitygw(port, store), versitygwUsers
	if t.options.S3 == MinIO {
		spec, setUp = t.minio(port, store), minioUsers
	}
	if err := t.run(ctx, spec, port); err != nil {
		return err
	}
	if err := makeBucket(ctx, store); err != nil {
		return err
	}
	if err := setUp(ctx, store); err != nil {
		return err
	}
	t.setEnvironment(func(e *Environment) { e.Store = store })
	return nil
}

// versitygw keeps users in a folder and, because of the versioning folder,
// knows object lock.
func (t *Testbed) versitygw(port int, store ObjectStore) process.Spec {
	return process.Spec{
		Name: ComponentStore,
		Path: t.tools[toolset.VersityGW],
		Arguments: []string{
			"--port", fmt.Sprintf("127.0.0.1:%d", port),
			"--region", store.Region,
			"--iam-dir", t.path("s3/users"),
			"--health", "/health",
			"--keep-alive", "--quiet",
			"posix", "--versioning-dir", t.path("s3/versions"), t.path("s3/data"),
		},
		Environment: []string{"ROOT_ACCESS_KEY=" + store.Admin.Key, "ROOT_SECRET_KEY=" + store.Admin.Secret},
		Ready:       process.Probe{URL: store.Endpoint + "/health"},
		Advice:      "check that the disk has room, or use S3=minio",
	}
}

// minio starts in the mode of its continuous integration, which allows data and
// system on one disk.
func (t *Testbed) minio(port int, store ObjectStore) process.Spec {
	return process.Spec{
		Name:      ComponentStore,
		Path:      t.tools[toolset.MinIO],
		Arguments: []string{"server", "--address", fmt.Sprintf("127.0.0.1:%d", port), "--quiet", t.path("s3/data")},
		Environment: []string{
			"MINIO_ROOT_USER=" + store.Admin.Key, "MINIO_ROOT_PASSWORD=" + store.Admin.Secret,
			"MINIO_REGION=" + store.Region, "MINIO_CI_CD=1", "MINIO_BROWSER=off", "MINIO_UPDATE=off",
		},
		Ready:  process.Probe{URL: store.Endpoint + "/minio/health/live"},
		Advice: "check that the disk has room",
	}
}

func makeBucket(ctx context.Context, store ObjectStore) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	client, err := store.Client(store.Admin)
	if err != nil {
		return err
	}
	options := minio.MakeBucketOptions{Region: store.Region, ObjectLocking: true}
	if err := client.MakeBucket(ctx, store.Bucket, options); err != nil {
		return fmt.Errorf("making the bucket %s with object lock (versitygw needs a file system with extended attributes): %w", store.Bucket, err)
	}
	return nil
}

// newCredentials makes up a user. The key names the role, for whoever reads the
// store's log.
func newCredentials(role string) Credentials {
	return Credentials{Key: role + strings.ToLower(rand.Text()[:8]), Secret: rand.Text() + rand.Text()}
}
