package wire_test

import (
	"testing"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/wire"
)

func TestDeterministic(t *testing.T) {
	for members, want := range map[string]bool{
		`"temperature":1`:                 false,
		`"temperature":0`:                 true,
		`"temperature":0.0`:               true,
		`"temperature":-0`:                true,
		`"temperature":"0"`:               false,
		`"seed":0`:                        true,
		`"seed":7`:                        true,
		`"seed":4294967296`:               true,
		`"seed":9007199254740993`:         true,
		`"seed":null`:                     false,
		`"seed":"7"`:                      false,
		`"seed":-1`:                       false,
		`"seed":-7`:                       false,
		`"seed":4294967295`:               false,
		`"seed":4294967295.0`:             false,
		`"seed":18446744073709551615`:     false,
		`"seed":1e400`:                    false,
		`"seed":-1,"temperature":0`:       true,
		`"temperature":0,"seed":-1`:       true,
		`"temperature":0,"s\u0065ed":1`:   false,
		`"temperature":0,"tools":[]`:      true,
		`"seed":7,"conversation":null`:    true,
		`"seed":7,"enable_search":false`:  true,
		`"seed":7,"web_search_options":1`: false,

		`"seed":7,"plugins":[{"id":"web"}]`: false,
	} {
		f, err := wire.ScanRequest(inference.Chat, []byte(`{"model":"m","messages":[],`+members+`}`))
		if err != nil || f.Deterministic != want {
			t.Errorf("%s: got %v, %v", members, f.Deterministic, err)
		}
	}
}
