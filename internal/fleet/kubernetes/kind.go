package kubernetes

import (
	"cmp"
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	codec "k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// kind is a kind of objects that is followed.
type kind struct {
	resource string
	path     string // of the API
	version  schema.GroupVersion
	selector string         // of labels
	object   runtime.Object // an example
	list     func() runtime.Object
	as       string // ask for objects as this type, and for lists as of it; "": as they are
	store    cache.ReflectorStore
	outage   *outage
}

// slices are the EndpointSlices of the service.
func (s *Source) slices(into cache.ReflectorStore) *kind {
	return &kind{
		resource: "endpointslices", path: "/apis", version: discoveryV1,
		selector: serviceLabel + "=" + s.cfg.Service,
		object:   new(endpointSlice), list: func() runtime.Object { return new(endpointSliceList) },
		store: into, outage: &outage{log: s.log.With("resource", "endpointslices")},
	}
}

// pods are the selected pods of the namespace, their metadata only.
func (s *Source) pods(into cache.ReflectorStore) *kind {
	return &kind{
		resource: "pods", path: "/api", version: schema.GroupVersion{Version: "v1"},
		selector: s.cfg.PodLabels,
		object:   &meta.PartialObjectMetadata{}, list: func() runtime.Object { return new(meta.PartialObjectMetadataList) },
		as:    "PartialObjectMetadata",
		store: into, outage: &outage{log: s.log.With("resource", "pods")},
	}
}

// serializer reads the types of the scheme.
func serializer() runtime.NegotiatedSerializer {
	return codec.NewCodecFactory(scheme()).WithoutConversion()
}

// reflector makes what follows the kind. Its requests end with ctx.
func (k *kind) reflector(ctx context.Context, n *connection) (*cache.Reflector, error) {
	client, err := n.clientFor(k.path, k.version)
	if err != nil {
		return nil, err
	}
	params := runtime.NewParameterCodec(scheme())
	ask := func(o *meta.ListOptions, suffix string) *rest.Request {
		o.LabelSelector = k.selector
		// The reflector tries again; the client's own tries would hide an outage for
		// seconds.
		req := client.Get().MaxRetries(0).Namespace(n.namespace).Resource(k.resource).SpecificallyVersionedParams(o, params, schema.GroupVersion{Version: "v1"})
		if k.as != "" {
			req.SetHeader("Accept", "application/json;as="+k.as+suffix+";g=meta.k8s.io;v=v1")
		}
		return req
	}
	lw := &cache.ListWatch{
		// The reflector lists in a goroutine whose context never ends.
		ListWithContextFunc: func(_ context.Context, o meta.ListOptions) (runtime.Object, error) {
			out := k.list()
			err := ask(&o, "List").Do(ctx).Into(out)
			k.outage.note(ctx, &o, err)
			return out, err
		},
		WatchFuncWithContext: func(ctx context.Context, o meta.ListOptions) (watch.Interface, error) {
			o.Watch = true
			var a attempt
			w, err := ask(&o, "").Timeout(time.Duration(*o.TimeoutSeconds) * time.Second).Watch(context.WithValue(ctx, attemptKey{}, &a))
			k.outage.note(ctx, &o, cmp.Or(err, a.err))
			return w, err
		},
	}
	quiet := logr.Discard()
	return cache.NewReflectorWithOptions(lw, k.object, k.store, cache.ReflectorOptions{
		Name: k.resource, Logger: &quiet,
		Backoff: &wait.Backoff{Duration: firstRetry, Factor: 2, Jitter: 1, Cap: maxRetry, Steps: 1 << 20},
	}), nil
}

// outage logs the begin and the end of each time in which a kind cannot be read.
// It is safe for concurrent use.
type outage struct {
	log *slog.Logger
	mu  struct {
		sync.Mutex
		on bool
	}
}

// note is told how each request went.
func (o *outage) note(ctx context.Context, opts *meta.ListOptions, err error) {
	switch {
	case ctx.Err() != nil:
		return
	case apierrors.IsResourceExpired(err), apierrors.IsGone(err):
		return // the server has forgotten where a watch was: it is listed again
	case err != nil && opts.SendInitialEvents != nil && (apierrors.IsInvalid(err) || apierrors.IsBadRequest(err)):
		return // a server that cannot send a list as a watch is asked for the list
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	switch was := o.mu.on; {
	case err != nil && !was:
		o.log.Warn("kubernetes cannot be asked; keeping the last known set", "err", err)
	case err == nil && was:
		o.log.Info("kubernetes answers again")
	}
	o.mu.on = err != nil
}
