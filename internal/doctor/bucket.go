package doctor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/taskgate/taskgate/recorder"
)

var errNoBucket = errors.New("no bucket to look at; name it (s3://BUCKET) with --endpoint, or leave this out with --skip bucket,journals")

// surveyDays is how far back journals are looked for.
const surveyDays = 7 * 24 * time.Hour

// canaryAge is how old the newest canary may be: brokers try the lock every hour.
const canaryAge = 2 * time.Hour

func (c *Config) survey(ctx context.Context) (*recorder.Survey, error) {
	if c.Bucket == nil {
		return nil, errNoBucket
	}
	survey, err := recorder.Look(ctx, c.Bucket, c.Now().Add(-surveyDays))
	if err != nil {
		return nil, fmt.Errorf("looking at the bucket: %w", err)
	}
	return survey, nil
}

// bucket judges the locks by what they did: an auditor may not read the bucket's
// settings, and a setting proves less.
func (c *Config) bucket(ctx context.Context) ([]Finding, error) {
	survey, err := c.survey(ctx)
	if err != nil {
		return nil, err
	}
	now := survey.Time
	if now.IsZero() {
		return nil, errors.New("this is a copy, which has no locks; name the bucket itself")
	}
	var findings []Finding
	var problems []error
	for _, part := range []struct {
		what   string
		object *recorder.SurveyObject
	}{{"canary", survey.Canary}, {"manifest", survey.Manifest}} {
		found, err := locked(part.what, part.object, now)
		findings, problems = append(findings, found...), append(problems, err)
	}
	if survey.Canary != nil && now.Sub(survey.Canary.Modified) > canaryAge {
		findings = append(findings, Finding{Error, survey.Canary.Key, fmt.Sprintf("no broker has tried the lock since %s", survey.Canary.Modified.UTC().Format(time.RFC3339)),
			"each broker stores an object and tries to delete it every hour; nobody knows whether locks still hold", "see whether brokers run and are ready: taskgate doctor, check broker"})
	}
	more := ""
	if survey.Partial {
		more = "more than "
	}
	findings = append(findings, Finding{Severity: Note, Object: "bucket", What: fmt.Sprintf("%s%d objects, %d bytes", more, survey.Objects, survey.Bytes)})
	return findings, errors.Join(problems...)
}

func locked(what string, object *recorder.SurveyObject, now time.Time) ([]Finding, error) {
	const why = "what is not locked can be deleted or overwritten by whoever has the right credential"
	switch {
	case object == nil:
		return []Finding{{Error, "bucket", "there is no " + what, "no broker of the last days has stored anything here", "see whether brokers use this bucket"}}, nil
	case object.Locked != nil:
		return nil, fmt.Errorf("reading the lock of %s (s3:GetObjectRetention): %w", object.Key, object.Locked)
	case object.ID == "" || object.ID == "null":
		return []Finding{{Error, object.Key, "has no version", why, "switch versioning on, and use a new bucket with object lock"}}, nil
	case object.Lock.Mode != "COMPLIANCE":
		return []Finding{{Error, object.Key, fmt.Sprintf("its lock has the mode %q, not COMPLIANCE", object.Lock.Mode), why, "use a bucket made with object lock"}}, nil
	case what == "canary" && !object.Lock.Until.After(now):
		return []Finding{{Error, object.Key, "the lock of the newest canary has ended", why, "see whether brokers run"}}, nil
	}
	return nil, nil
}

// journals finds brokers that went away without a word. What they had not stored
// lies in their spool.
func (c *Config) journals(ctx context.Context) ([]Finding, error) {
	survey, err := c.survey(ctx)
	if err != nil {
		return nil, err
	}
	now := survey.Time
	if now.IsZero() {
		now = c.Now()
	}
	var findings []Finding
	alive := 0
	for _, stream := range survey.Streams {
		name := stream.Cluster + "/" + stream.Stream
		switch silent := now.Sub(stream.Last); {
		case stream.End != "open":
		case stream.Last.IsZero():
			return findings, errors.New("this is a copy, which does not tell when objects were stored; name the bucket itself")
		case silent > c.Silence:
			findings = append(findings, Finding{
				Error, name, fmt.Sprintf("is not closed, and silent for %s", silent.Round(time.Second)),
				"the broker died or cannot reach the bucket; its last records may lie in its spool, and nowhere else",
				"start the broker again with the same spool, or run there: broker drain",
			})
		default:
			alive++
		}
	}
	if alive == 0 {
		findings = append(findings, Finding{Error, "bucket", "no broker is recording", "a broker that lives stores a heartbeat every minute", "see whether brokers run and use this bucket"})
	}
	return findings, nil
}
