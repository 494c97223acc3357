package bench

// ProxyConfig is the configuration of a proxy in front of engines, for a bench
// that runs as root or not.
func ProxyConfig(system string, p Proxy, engines []string, root bool) (string, error) {
	place := newProxyPlace(system, p, "127.0.0.1:8080", engines, 20_000)
	place.Dir, place.Root = "/tmp/proxy", root
	return proxyConfig(system, place)
}

// What the searches, the stages and the scenarios are made of.
var (
	NginxGrid        = nginxGrid
	HAProxyGrid      = haproxyGrid
	BatchAtOptimum   = batchAtOptimum
	OverloadGateway  = gatewayText
	OverloadKeysFile = liveKeys
	LiveOutage       = liveOutage
)
