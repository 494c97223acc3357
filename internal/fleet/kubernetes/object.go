package kubernetes

import (
	"slices"

	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// discoveryV1 is the version of the API that has EndpointSlices.
var discoveryV1 = schema.GroupVersion{Group: "discovery.k8s.io", Version: "v1"}

// serviceLabel is the label of a slice with the name of its service.
const serviceLabel = "kubernetes.io/service-name"

// endpointSlice is an EndpointSlice with what is read of it. The types of
// k8s.io/api would bring those of the whole core API with them, 4 MB.
type endpointSlice struct {
	meta.TypeMeta   `json:",inline"`
	meta.ObjectMeta `json:"metadata"`
	AddressType     string          `json:"addressType"`
	Endpoints       []sliceEndpoint `json:"endpoints"`
	Ports           []slicePort     `json:"ports"`
}

// sliceEndpoint is one endpoint of an EndpointSlice.
type sliceEndpoint struct {
	Addresses  []string `json:"addresses"`
	Conditions struct {
		Ready       *bool `json:"ready"`
		Serving     *bool `json:"serving"`
		Terminating *bool `json:"terminating"`
	} `json:"conditions"`
	TargetRef *struct {
		Kind string `json:"kind"`
		Name string `json:"name"`
	} `json:"targetRef"`
	Zone *string `json:"zone"`
}

// slicePort is one port of an EndpointSlice.
type slicePort struct {
	Name *string `json:"name"`
	Port *int32  `json:"port"`
}

// DeepCopyObject implements runtime.Object. What pointers point to is never
// written, so the copies share it.
func (s *endpointSlice) DeepCopyObject() runtime.Object {
	c := *s
	s.ObjectMeta.DeepCopyInto(&c.ObjectMeta)
	c.Endpoints, c.Ports = slices.Clone(s.Endpoints), slices.Clone(s.Ports)
	for i := range c.Endpoints {
		c.Endpoints[i].Addresses = slices.Clone(c.Endpoints[i].Addresses)
	}
	return &c
}

// endpointSliceList is a list of them.
type endpointSliceList struct {
	meta.TypeMeta `json:",inline"`
	meta.ListMeta `json:"metadata"`
	Items         []endpointSlice `json:"items"`
}

// DeepCopyObject implements runtime.Object.
func (l *endpointSliceList) DeepCopyObject() runtime.Object {
	c := *l
	l.ListMeta.DeepCopyInto(&c.ListMeta)
	c.Items = make([]endpointSlice, len(l.Items))
	for i := range l.Items {
		c.Items[i] = *l.Items[i].DeepCopyObject().(*endpointSlice)
	}
	return &c
}

// scheme knows the types that are read.
func scheme() *runtime.Scheme {
	s := runtime.NewScheme()
	s.AddKnownTypeWithName(discoveryV1.WithKind("EndpointSlice"), new(endpointSlice))
	s.AddKnownTypeWithName(discoveryV1.WithKind("EndpointSliceList"), new(endpointSliceList))
	meta.AddToGroupVersion(s, discoveryV1)
	meta.AddToGroupVersion(s, schema.GroupVersion{Version: "v1"})
	s.AddKnownTypes(schema.GroupVersion{Group: meta.GroupName, Version: "v1"}, &meta.PartialObjectMetadata{}, &meta.PartialObjectMetadataList{})
	return s
}
