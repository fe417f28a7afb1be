package recorder

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// objects yields the objects directly under prefix in the order of their keys,
// each as its versions, newest first; a folder is an object with one version and
// a key that ends in "/". What the store took after cutoff is left out, unless
// cutoff is zero.
func objects(ctx context.Context, bucket Bucket, prefix string, cutoff time.Time) iter.Seq2[[]Version, error] {
	return func(yield func([]Version, error) bool) {
		var group []Version
		last := ""
		for version, err := range bucket.List(ctx, prefix) {
			if err == nil && !strings.HasPrefix(version.Key, prefix) {
				err = fmt.Errorf("the listing of %s names %s", prefix, version.Key)
			}
			if err != nil {
				yield(nil, fmt.Errorf("listing %s: %w", prefix, err))
				return
			}
			if !cutoff.IsZero() && version.Modified.After(cutoff) {
				continue
			}
			if len(group) > 0 && group[0].Key != version.Key {
				if !yield(group, nil) {
					return
				}
				group = nil
			}
			if !isFolder(version.Key) {
				if version.Key < last {
					yield(nil, fmt.Errorf("listing %s: %s comes after %s; this store lists out of order", prefix, version.Key, last))
					return
				}
				last = version.Key
			}
			if len(group) == maxVersions {
				group = group[:maxVersions-1] // the newest and the oldest suffice to say that there are more
			}
			group = append(group, version)
		}
		if len(group) > 0 {
			yield(group, nil)
		}
	}
}

// maxVersions bounds what is kept of one key's versions; there should be one.
const maxVersions = 1000

func isFolder(key string) bool { return strings.HasSuffix(key, "/") }

// oldest returns the version with content that was there first: the store gave
// no later one to a key that existed.
func oldest(versions []Version) (Version, bool) {
	var first Version
	for _, version := range versions {
		if !version.Marker && (first.Key == "" || !version.Modified.After(first.Modified)) {
			first = version
		}
	}
	return first, first.Key != ""
}

// layer lists one level of the layout: folders are yielded by the part of their
// name that follows label, and whatever else lies there goes to stray.
func layer(ctx context.Context, bucket Bucket, prefix, label string, cutoff time.Time, stray func(key string)) ([]string, error) {
	var names []string
	for versions, err := range objects(ctx, bucket, prefix, cutoff) {
		if err != nil {
			return nil, err
		}
		key := versions[0].Key
		name, found := strings.CutPrefix(strings.TrimSuffix(strings.TrimPrefix(key, prefix), "/"), label)
		if !isFolder(key) || !found || !validName(name) {
			stray(key)
			continue
		}
		names = append(names, name)
	}
	return names, nil
}

// union merges the names of a level that two branches of the layout share.
func union(lists ...[]string) []string {
	all := map[string]bool{}
	for _, list := range lists {
		for _, name := range list {
			all[name] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// numberIn returns the number in the last part of a key made of digits digits
// and a suffix.
func numberIn(key, suffix string, digits int) (uint64, bool) {
	name, found := strings.CutSuffix(key[strings.LastIndexByte(key, '/')+1:], suffix)
	number, err := strconv.ParseUint(name, 10, 64)
	return number, found && err == nil && len(name) == digits && number > 0
}

// period picks days; zero times are open ends.
type period struct{ from, to time.Time }

func (p period) includes(day string) bool {
	parsed, err := time.Parse(time.DateOnly, day)
	return err == nil && (p.from.IsZero() || day >= dayOf(p.from)) && (p.to.IsZero() || day <= dayOf(p.to)) && dayOf(parsed) == day
}
