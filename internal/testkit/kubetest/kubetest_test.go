package kubetest_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/spillway/spillway/internal/testkit/kubetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestServer(t *testing.T) {
	s := kubetest.Start(t)
	const path = "/api/v1/namespaces/default/configmaps"
	object := map[string]any{"metadata": map[string]any{"name": "a"}, "data": map[string]string{"k": "v"}}
	s.Apply(path, "a", object)
	s.Apply(path, "a", object)
	s.Restart()
	got, err := s.Try(http.MethodGet, path+"/a", nil)
	if err != nil || !strings.Contains(got, `"k":"v"`) {
		t.Errorf("after a restart: %s, %v", got, err)
	}
	s.Delete(path, "a")
	var status *kubetest.StatusError
	if _, err := s.Try(http.MethodGet, path+"/a", nil); !errors.As(err, &status) || status.Code != http.StatusNotFound {
		t.Errorf("removed: %v", err)
	}
	s.Kill()
	if _, err := s.Try(http.MethodGet, "/readyz", nil); err == nil {
		t.Error("a killed server answers")
	}
}
