package api_test

import (
	"testing"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

func TestCacheControl(t *testing.T) {
	r := newRig(t, nil, nil)
	age := func(d time.Duration) inference.CacheControl {
		return inference.CacheControl{HasMaxAge: true, MaxAge: d}
	}
	for _, c := range []struct {
		fields []string
		want   inference.CacheControl
	}{
		{nil, inference.CacheControl{}},
		{[]string{"Cache-Control: no-store"}, inference.CacheControl{NoStore: true}},
		{[]string{"cache-control: No-Cache , ONLY-IF-CACHED"}, inference.CacheControl{NoCache: true, OnlyIfCached: true}},
		{[]string{"Cache-Control: no-store", "Cache-Control: no-cache"}, inference.CacheControl{NoStore: true, NoCache: true}},
		{[]string{"Cache-Control: max-age=0"}, age(0)},
		{[]string{"Cache-Control: max-age=\"60\", no-transform"}, age(time.Minute)},
		{[]string{"Cache-Control: max-age=2147483647"}, age(2147483647 * time.Second)},
		{[]string{"Cache-Control: max-age"}, inference.CacheControl{}},
		{[]string{"Cache-Control: max-age=-1, max-age=1.5, max-age=x, max-age=99999999999"}, inference.CacheControl{}},
		{[]string{"Cache-Control: private, max-stale=5, ,;=,no-storeX"}, inference.CacheControl{}},
		{[]string{"Pragma: no-cache"}, inference.CacheControl{NoCache: true}},
		{[]string{"Pragma: no-cache", "Cache-Control: max-age=0"}, age(0)},
	} {
		if a := r.ask(post("/v1/chat/completions", chat, c.fields...)); a.StatusCode != 200 {
			t.Errorf("%q: got %d", c.fields, a.StatusCode)
		}
		if got := r.last().Cache; got != c.want {
			t.Errorf("%q: got %+v, want %+v", c.fields, got, c.want)
		}
	}
}
