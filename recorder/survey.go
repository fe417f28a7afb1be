package recorder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// Survey is what a look at a bucket shows without proving anything: who records,
// whether locks hold, how much there is.
type Survey struct {
	Time    time.Time // the store's clock; zero for a copy
	Streams []SurveyStream
	// Canary is the newest object a broker tried to delete, and Manifest the newest
	// manifest; nil if there is none in the days looked at.
	Canary, Manifest *SurveyObject
	// Objects and Bytes count what lies in the bucket; with Partial there is more.
	Objects, Bytes int64
	Partial        bool
}

// SurveyStream is the journal of one start of a broker, by its last manifest.
type SurveyStream struct {
	Cluster, Stream string
	End             string // "closed", "recovered" or "open"
	Last            time.Time
}

// SurveyObject is one object and its lock. A copy has no locks: then Locked is
// ErrNotKept.
type SurveyObject struct {
	Version
	Lock   Lock
	Locked error // why the lock could not be read
}

// surveyFolders bounds the folders in which Look counts objects: a recorded stream
// is a folder of its own.
const surveyFolders = 1000

// Look surveys a bucket. Journals without a manifest since from are left out. It
// needs to list and to read, and checks no signature: that is [Verify].
func Look(ctx context.Context, bucket Bucket, from time.Time) (*Survey, error) {
	now, err := bucket.Time(ctx)
	if err != nil {
		return nil, err
	}
	survey := &Survey{Time: now}
	ignore := func(string) {}
	clusters, err := layer(ctx, bucket, manifestPrefix, "cluster=", time.Time{}, ignore)
	if err != nil {
		return nil, err
	}
	for _, cluster := range clusters {
		if err := survey.cluster(ctx, bucket, cluster, from); err != nil {
			return nil, err
		}
	}
	brokers, err := layer(ctx, bucket, canaryPrefix, "", time.Time{}, ignore)
	if err != nil {
		return nil, err
	}
	for _, broker := range brokers {
		newest, err := newestUnder(ctx, bucket, canaryPrefix+broker+"/")
		if err != nil {
			return nil, err
		}
		later(&survey.Canary, newest)
	}
	for _, object := range []*SurveyObject{survey.Canary, survey.Manifest} {
		if object != nil {
			object.Lock, object.Locked = bucket.Lock(ctx, object.Key, object.ID)
		}
	}
	return survey, survey.count(ctx, bucket)
}

// cluster finds the last manifest of each stream: it lies in the last of the days
// in which the stream has a folder.
func (s *Survey) cluster(ctx context.Context, bucket Bucket, cluster string, from time.Time) error {
	ignore := func(string) {}
	prefix := manifestPrefix + "cluster=" + cluster + "/"
	days, err := layer(ctx, bucket, prefix, "dt=", time.Time{}, ignore)
	if err != nil {
		return err
	}
	folder := map[string]string{}
	for _, day := range days {
		if !(period{from: from}).includes(day) {
			continue
		}
		streams, err := layer(ctx, bucket, prefix+"dt="+day+"/", "", time.Time{}, ignore)
		if err != nil {
			return err
		}
		for _, stream := range streams {
			folder[stream] = prefix + "dt=" + day + "/" + stream + "/" // days ascend
		}
	}
	for _, stream := range union(keysOf(folder)) {
		newest, err := newestUnder(ctx, bucket, folder[stream])
		if err != nil {
			return err
		}
		if newest == nil {
			continue
		}
		end, err := endOf(ctx, bucket, newest)
		if err != nil {
			return err
		}
		s.Streams = append(s.Streams, SurveyStream{Cluster: cluster, Stream: stream, End: end, Last: newest.Modified})
		later(&s.Manifest, newest)
	}
	return nil
}

// newestUnder returns the object with the highest key that has content, nil if
// there is none. Keys of one folder ascend with time.
func newestUnder(ctx context.Context, bucket Bucket, prefix string) (*SurveyObject, error) {
	var newest *SurveyObject
	for versions, err := range objects(ctx, bucket, prefix, time.Time{}) {
		if err != nil {
			return nil, err
		}
		if version, ok := oldest(versions); ok && !isFolder(version.Key) {
			newest = &SurveyObject{Version: version}
		}
	}
	return newest, nil
}

func later(kept **SurveyObject, found *SurveyObject) {
	if found != nil && (*kept == nil || found.Modified.After((*kept).Modified)) {
		*kept = found
	}
}

func endOf(ctx context.Context, bucket Bucket, object *SurveyObject) (string, error) {
	content, err := bucket.Get(ctx, object.Key, object.ID)
	if err != nil {
		return "", err
	}
	data, err := io.ReadAll(io.LimitReader(content, maxManifest+1))
	if err := errors.Join(err, content.Close()); err != nil {
		return "", fmt.Errorf("reading %s: %w", object.Key, err)
	}
	manifest, err := parseManifest(data)
	switch {
	case err != nil:
		return "", fmt.Errorf("reading %s: %w", object.Key, err)
	case manifest.Kind == KindClose:
		return manifest.End, nil
	}
	return "open", nil
}

// count adds up what lies in the bucket, folder by folder, up to surveyFolders.
func (s *Survey) count(ctx context.Context, bucket Bucket) error {
	folders := []string{journalPrefix, manifestPrefix, streamPrefix, trustPrefix, "v1/sessions/"}
	for looked := 0; len(folders) > 0; looked++ {
		if looked == surveyFolders {
			s.Partial = true
			return nil
		}
		folder := folders[0]
		folders = folders[1:]
		for version, err := range bucket.List(ctx, folder) {
			switch {
			case err != nil:
				return fmt.Errorf("listing %s: %w", folder, err)
			case isFolder(version.Key) && strings.HasPrefix(version.Key, folder) && len(version.Key) > len(folder):
				folders = append(folders, version.Key)
			case !version.Marker:
				s.Objects++
				s.Bytes += version.Size
			}
		}
	}
	return nil
}
