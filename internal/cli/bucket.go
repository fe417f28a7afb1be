package cli

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/taskgate/taskgate/recorder"
)

// place is where the records are: a bucket, or a copy of one in a directory.
type place struct {
	endpoint, region string
}

const placeHelp = `PLACE is s3://BUCKET or a directory that holds a copy of the bucket. Left out,
it is $TASKGATE_S3_BUCKET. A bucket needs --endpoint (or $TASKGATE_S3_ENDPOINT)
and a credential that may list and read: from where AWS tools look for it, such
as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or from
TASKGATE_S3_AUDITOR_KEY and TASKGATE_S3_AUDITOR_SECRET.`

func (p *place) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&p.endpoint, "endpoint", os.Getenv("TASKGATE_S3_ENDPOINT"), "`URL` of the S3 store")
	cmd.Flags().StringVar(&p.region, "region", os.Getenv("AWS_REGION"), "region of the bucket, us-east-1 if left out")
}

// open opens what the argument names. close is never nil.
func (p *place) open(args []string) (bucket recorder.Bucket, done func(), err error) {
	done = func() {}
	where := ""
	if len(args) > 0 {
		where = args[0]
	} else if name := os.Getenv("TASKGATE_S3_BUCKET"); name != "" {
		where = "s3://" + name
	}
	name, isBucket := strings.CutPrefix(where, "s3://")
	switch {
	case where == "":
		return nil, done, errors.New("which records? Name a bucket (s3://BUCKET) or a directory with a copy of one")
	case !isBucket:
		folder, err := recorder.OpenFolder(where)
		if err != nil {
			return nil, done, err
		}
		return folder, func() { _ = folder.Close() }, nil
	case p.endpoint == "":
		return nil, done, fmt.Errorf("where is the bucket %q? Give --endpoint, such as https://s3.eu-central-1.amazonaws.com", name)
	}
	config := recorder.S3Config{Endpoint: p.endpoint, Bucket: strings.TrimSuffix(name, "/"), Region: p.region}
	if os.Getenv("AWS_ACCESS_KEY_ID") == "" {
		config.AccessKey, config.SecretKey = os.Getenv("TASKGATE_S3_AUDITOR_KEY"), os.Getenv("TASKGATE_S3_AUDITOR_SECRET")
	}
	bucket, err = recorder.NewS3(config)
	return bucket, done, err
}
