package admin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

// Emergency is the emergency switch. Its methods are called from many goroutines.
type Emergency interface {
	// State tells how the switch stands.
	State() EmergencyState
	// On carries out an order to switch on, or changes one in force. The error says
	// what is wrong with the order, which then changed nothing. What went wrong
	// behind an order that is in force is the state's Warning.
	On(order EmergencyOrder) (EmergencyState, error)
	// Off carries out an order to switch off, as On does. Reason and Expiry are
	// empty.
	Off(order EmergencyOrder) (EmergencyState, error)
}

// EmergencyOrder is what an operator asks for.
type EmergencyOrder struct {
	By     string        // who says to give it; not proven
	From   string        // the address that it came from
	Reason string        // for those who look later
	Expiry time.Duration // 0 is the configured one
}

// EmergencyState is the answer of /admin/emergency.
type EmergencyState struct {
	On      bool             `json:"on"`
	Since   time.Time        `json:"since,omitzero"` // when it was first switched on
	Until   time.Time        `json:"until,omitzero"` // when it goes off by itself
	By      string           `json:"by,omitempty"`   // who gave the order in force
	From    string           `json:"from,omitempty"` // from which address
	Reason  string           `json:"reason,omitempty"`
	Profile EmergencyProfile `json:"profile"` // what is applied while it is on
	// Warning is what went wrong behind an order that is in force, as when a restart
	// would not know of it.
	Warning string `json:"warning,omitempty"`
}

// EmergencyProfile is what the switch applies.
type EmergencyProfile struct {
	Shed         []string `json:"shed"`          // classes that are refused
	StandbyPools bool     `json:"standby_pools"` // pools marked standby take work
	Brownout     string   `json:"brownout"`      // least step of the brownout ladder
}

// Bounds of the body of an order.
const (
	maxOrder     = 16 << 10 // bytes
	orderTimeout = 10 * time.Second
)

// emergency answers GET /admin/emergency.
func (s *Server) emergency(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, s.parts.Emergency.State())
}

// switchEmergency answers POST /admin/emergency. An order that is in force is 200,
// also when there is something to warn of.
func (s *Server) switchEmergency(w http.ResponseWriter, r *http.Request) {
	order, on, p := readOrder(w, r)
	if p != nil {
		p.write(w)
		return
	}
	carryOut := s.parts.Emergency.Off
	if on {
		carryOut = s.parts.Emergency.On
	}
	state, err := carryOut(order)
	if err != nil {
		p := problem{http.StatusBadRequest, codeInvalidRequest, err.Error()}
		p.write(w)
		return
	}
	writeJSON(w, http.StatusOK, state)
}

// readOrder reads the body of POST /admin/emergency, of whatever content type:
// curl names a wrong one unless it is told not to, and this is no time for that.
func readOrder(w http.ResponseWriter, r *http.Request) (order EmergencyOrder, on bool, p *problem) {
	body, p := readBody(w, r)
	if p != nil {
		return order, false, p
	}
	order, on, err := parseOrder(body)
	if err != nil {
		return order, false, &problem{http.StatusBadRequest, codeInvalidRequest, err.Error()}
	}
	order.From = r.RemoteAddr
	return order, on, nil
}

// readBody reads the body of an order.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, *problem) {
	return readUpTo(w, r, maxOrder)
}

// readUpTo reads a body of at most so many bytes.
func readUpTo(w http.ResponseWriter, r *http.Request, most int64) ([]byte, *problem) {
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(orderTimeout)) // not in tests without a connection
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, most))
	if err != nil {
		_, large := errors.AsType[*http.MaxBytesError](err)
		switch {
		case large:
			return nil, &problem{http.StatusRequestEntityTooLarge, codeTooLarge, fmt.Sprintf("the body has more than %d bytes", most)}
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil, &problem{http.StatusRequestTimeout, codeTimeout, fmt.Sprintf("the body did not arrive within %v", orderTimeout)}
		}
		return nil, &problem{http.StatusBadRequest, codeInvalidRequest, fmt.Sprintf("read the body: %v", err)}
	}
	return body, nil
}

// parseOrder reads an order. An unknown member is a mistake: a misspelt expiry
// must not mean the default.
func parseOrder(body []byte) (order EmergencyOrder, on bool, err error) {
	var v struct {
		State  string  `json:"state"`
		By     string  `json:"by"`
		Reason *string `json:"reason"`
		Expiry *string `json:"expiry"`
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		return order, false, fmt.Errorf("the body is no order: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return order, false, errors.New("the body is no order: something follows the JSON object")
	}
	order.By = v.By
	switch v.State {
	case "on":
	case "off":
		if v.Reason != nil || v.Expiry != nil {
			return order, false, errors.New("reason and expiry belong to the state on")
		}
		return order, false, nil
	case "":
		return order, false, errors.New("state: is missing; give on or off")
	default:
		return order, false, fmt.Errorf("state: want on or off, got %q", v.State)
	}
	if v.Reason != nil {
		order.Reason = *v.Reason
	}
	if v.Expiry != nil {
		if order.Expiry, err = time.ParseDuration(*v.Expiry); err != nil {
			return order, false, fmt.Errorf("expiry: %q is no duration, as 30m is", *v.Expiry)
		}
		if order.Expiry <= 0 {
			return order, false, fmt.Errorf("expiry: must be positive, got %q", *v.Expiry)
		}
	}
	return order, true, nil
}
