package testbed

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/minio/madmin-go/v3"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/signer"
)

// versitygwUsers makes the users over versitygw's admin interface and gives them
// their permissions in the bucket's policy. It knows every action on its own, so
// the permissions are exactly those ObjectStore promises.
func versitygwUsers(ctx context.Context, store ObjectStore) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	for _, user := range []Credentials{store.Broker, store.Auditor} {
		if err := versitygwUser(ctx, store, user); err != nil {
			return fmt.Errorf("making the user %s: %w", user.Key, err)
		}
	}
	canary := statement{Action: []string{"s3:DeleteObjectVersion"}}
	statements := append(to(store.Broker, brokerStatements(store.Bucket, canary)), to(store.Auditor, auditorStatements(store.Bucket))...)
	content, err := document(statements...)
	if err != nil {
		return err
	}
	client, err := store.Client(store.Admin)
	if err != nil {
		return err
	}
	if err := client.SetBucketPolicy(ctx, store.Bucket, string(content)); err != nil {
		return fmt.Errorf("setting the policy of the bucket %s: %w", store.Bucket, err)
	}
	return nil
}

// versitygwAccount is the body of versitygw's PATCH /create-user. Its role
// "user" may do nothing but what a bucket's policy says.
type versitygwAccount struct {
	XMLName xml.Name `xml:"Account"`
	Access  string
	Secret  string
	Role    string
}

func versitygwUser(ctx context.Context, store ObjectStore, user Credentials) error {
	body, err := xml.Marshal(versitygwAccount{Access: user.Key, Secret: user.Secret, Role: "user"})
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPatch, store.Endpoint+"/create-user", bytes.NewReader(body))
	if err != nil {
		return err
	}
	hash := sha256.Sum256(body)
	request.Header.Set("X-Amz-Content-Sha256", hex.EncodeToString(hash[:]))
	request = signer.SignV4(*request, store.Admin.Key, store.Admin.Secret, "", store.Region)
	response, err := http.DefaultTransport.RoundTrip(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }() // read as far as it matters
	if response.StatusCode >= http.StatusBadRequest {
		answer, _ := io.ReadAll(io.LimitReader(response.Body, 1<<10)) // only explains the status
		return fmt.Errorf("%s: %s", response.Status, answer)
	}
	return nil
}

// minioUsers makes users with policies of their own over MinIO's admin
// interface.
//
// MinIO has no separate permission to delete a version: s3:DeleteObject covers
// it. The condition on the version ID makes the difference again, so that the
// broker can leave no delete marker.
func minioUsers(ctx context.Context, store ObjectStore) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	endpoint, err := url.Parse(store.Endpoint)
	if err != nil {
		return fmt.Errorf("reading the address of the S3 store: %w", err)
	}
	admin, err := madmin.NewWithOptions(endpoint.Host, &madmin.Options{
		Creds: credentials.NewStaticV4(store.Admin.Key, store.Admin.Secret, ""),
	})
	if err != nil {
		return fmt.Errorf("making a client of MinIO's admin interface: %w", err)
	}
	canary := statement{
		Action:    []string{"s3:DeleteObject"},
		Condition: map[string]map[string][]string{"StringLike": {"s3:versionid": {"?*"}}},
	}
	if err := minioUser(ctx, admin, store.Broker, brokerStatements(store.Bucket, canary)); err != nil {
		return fmt.Errorf("making the user %s: %w", store.Broker.Key, err)
	}
	if err := minioUser(ctx, admin, store.Auditor, auditorStatements(store.Bucket)); err != nil {
		return fmt.Errorf("making the user %s: %w", store.Auditor.Key, err)
	}
	return nil
}

func minioUser(ctx context.Context, admin *madmin.AdminClient, user Credentials, statements []statement) error {
	content, err := document(statements...)
	if err != nil {
		return err
	}
	if err := admin.AddUser(ctx, user.Key, user.Secret); err != nil {
		return err
	}
	if err := admin.AddCannedPolicy(ctx, user.Key, content); err != nil {
		return err
	}
	_, err = admin.AttachPolicy(ctx, madmin.PolicyAssociationReq{Policies: []string{user.Key}, User: user.Key})
	return err
}
