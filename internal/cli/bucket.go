package cli

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

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

// selection says which records are wanted.
type selection struct {
	filter   recorder.Filter
	from, to string
}

func (s *selection) flags(flags *pflag.FlagSet) {
	flags.StringVar(&s.filter.Cluster, "cluster", "", "only this cluster")
	flags.StringVar(&s.filter.Agent, "agent", "", "only this SPIFFE `ID`")
	flags.StringVar(&s.filter.Task, "task", "", "only this task")
	flags.StringVar(&s.filter.Grant, "grant", "", "only this TaskGrant")
	flags.StringVar(&s.from, "from", "", "not begun before this `time` (2026-11-23, 2026-11-23T12:00:00Z, or 2h for two hours ago)")
	flags.StringVar(&s.to, "to", "", "not begun after this `time`")
}

// resolve reads the times.
func (s *selection) resolve(now time.Time) (err error) {
	if s.filter.From, err = moment(s.from, "--from", now); err != nil {
		return err
	}
	s.filter.To, err = moment(s.to, "--to", now)
	return err
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
