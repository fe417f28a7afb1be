package testbed

import (
	"encoding/json"
	"fmt"
)

// policy is an S3 policy document, of the kind both stores and AWS read.
type policy struct {
	Version   string
	Statement []statement
}

type statement struct {
	Effect    string
	Principal map[string][]string            `json:",omitempty"`
	Action    []string                       `json:"Action"`
	Resource  []string                       `json:"Resource"`
	Condition map[string]map[string][]string `json:",omitempty"`
}

const allow = "Allow"

// brokerStatements is all that the broker may do. canary is what its store
// wants to hear for "delete a version": the broker tries that on its own locked
// canary, and a refusal then proves the lock, not the lack of a permission.
func brokerStatements(bucket string, canary statement) []statement {
	canary.Effect = allow
	canary.Resource = []string{objects(bucket, "v1/canary/*")}
	return []statement{
		{Effect: allow, Action: []string{"s3:PutObject", "s3:PutObjectRetention"}, Resource: []string{objects(bucket, "v1/*")}},
		{
			Effect:   allow,
			Action:   []string{"s3:GetBucketObjectLockConfiguration", "s3:GetBucketVersioning", "s3:GetLifecycleConfiguration"},
			Resource: []string{bucketResource(bucket)},
		},
		canary,
	}
}

// auditorStatements is all that an auditor may do.
func auditorStatements(bucket string) []statement {
	return []statement{
		{Effect: allow, Action: []string{"s3:ListBucket", "s3:ListBucketVersions"}, Resource: []string{bucketResource(bucket)}},
		{
			Effect:   allow,
			Action:   []string{"s3:GetObject", "s3:GetObjectVersion", "s3:GetObjectRetention"},
			Resource: []string{objects(bucket, "*")},
		},
	}
}

// to names the user a statement is for, as bucket policies do.
func to(user Credentials, statements []statement) []statement {
	for i := range statements {
		statements[i].Principal = map[string][]string{"AWS": {user.Key}}
	}
	return statements
}

func document(statements ...statement) ([]byte, error) {
	content, err := json.Marshal(policy{Version: "2012-10-17", Statement: statements})
	if err != nil {
		return nil, fmt.Errorf("encoding an S3 policy: %w", err)
	}
	return content, nil
}

func bucketResource(bucket string) string { return "arn:aws:s3:::" + bucket }

func objects(bucket, pattern string) string { return bucketResource(bucket) + "/" + pattern }
