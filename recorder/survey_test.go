package recorder_test

import (
	"errors"
	"testing"
	"time"

	"github.com/taskgate/taskgate/recorder"
)

func TestLook(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	f.calls(r, 2)
	f.close(r)
	f.config.Broker = "other"
	f.config.Spool = t.TempDir()
	r = f.open()
	f.calls(r, 1)
	f.sealed(r)
	survey, err := recorder.Look(t.Context(), f.store, time.Now().Add(-48*time.Hour))
	f.close(r)
	if err != nil {
		t.Fatal(err)
	}
	ends := map[string]int{}
	for _, stream := range survey.Streams {
		ends[stream.End]++
		if stream.Last.IsZero() || stream.Cluster != "test" {
			t.Errorf("%+v", stream)
		}
	}
	if len(survey.Streams) != 2 || ends["closed"] != 1 || ends["open"] != 1 {
		t.Errorf("%+v", survey.Streams)
	}
	for _, object := range []*recorder.SurveyObject{survey.Canary, survey.Manifest} {
		if object == nil || object.ID == "" || object.Lock.Mode != "COMPLIANCE" || object.Locked != nil {
			t.Errorf("%+v", object)
		}
	}
	if survey.Partial || survey.Objects < 5 || survey.Bytes == 0 {
		t.Errorf("%d objects, %d bytes", survey.Objects, survey.Bytes)
	}
	if survey, err := recorder.Look(t.Context(), f.store, time.Now().Add(48*time.Hour)); err != nil || len(survey.Streams) > 0 || survey.Manifest != nil {
		t.Errorf("what was before the time is there: %+v, %v", survey, err)
	}
}

// A manifest that cannot be read is no closed journal.
func TestLookFails(t *testing.T) {
	f := newFixture(t)
	f.close(f.open())
	var key string
	for _, key = range f.store.Keys("v1/manifests/") {
	}
	if _, err := f.store.Put(t.Context(), key+".x", []byte("no manifest"), time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if _, err := recorder.Look(t.Context(), f.store, time.Time{}); err == nil || errors.Is(err, recorder.ErrNotFound) {
		t.Errorf("a manifest that is none was taken: %v", err)
	}
}
