package api

import (
	"fmt"
	"os"
	"sync"
	"syscall"
)

// hangups tells connections that their client closed its side while their
// goroutine does something else. It is one epoll set that holds each connection
// once, edge-triggered, for RDHUP alone: one system call a connection, none a
// request. net/http starts a goroutine for each request instead.
//
// Its goroutine is started by newHangups and ends with close.
type hangups struct {
	epfd int
	file *os.File // epfd, so that Go's own poller waits for it
	done chan struct{}

	mu struct {
		sync.Mutex
		next  hangupTicket
		conns map[hangupTicket]*leanConn
	}
}

// hangupTicket names a registration; unlike a file descriptor it is never used
// again, so an event that comes late finds nobody. 0 is none.
type hangupTicket uint64

// rdhup is EPOLLRDHUP, edge-triggered.
const rdhup = syscall.EPOLLRDHUP | 1<<31

// newHangups makes the set and starts its goroutine.
func newHangups() (*hangups, error) {
	epfd, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	if err := syscall.SetNonblock(epfd, true); err != nil {
		syscall.Close(epfd)
		return nil, fmt.Errorf("epoll: %w", err)
	}
	h := &hangups{epfd: epfd, file: os.NewFile(uintptr(epfd), "hangups"), done: make(chan struct{})}
	h.mu.conns = make(map[hangupTicket]*leanConn)
	raw, err := h.file.SyscallConn()
	if err != nil {
		h.file.Close()
		return nil, fmt.Errorf("epoll: %w", err)
	}
	go h.run(raw)
	return h, nil
}

// run delivers events until close.
func (h *hangups) run(raw syscall.RawConn) {
	defer close(h.done)
	var events [64]syscall.EpollEvent
	for {
		var n int
		err := raw.Read(func(fd uintptr) bool {
			var err error
			n, err = syscall.EpollWait(int(fd), events[:], 0)
			return n > 0 || err != nil && err != syscall.EINTR
		})
		if err != nil {
			return
		}
		for _, ev := range events[:max(n, 0)] {
			h.mu.Lock()
			c := h.mu.conns[hangupTicket(uint32(ev.Fd))|hangupTicket(uint32(ev.Pad))<<32]
			h.mu.Unlock()
			if c != nil {
				c.hangup()
			}
		}
	}
}

// add registers a connection.
func (h *hangups) add(fd int, c *leanConn) (hangupTicket, error) {
	h.mu.Lock()
	h.mu.next++
	t := h.mu.next
	h.mu.conns[t] = c
	h.mu.Unlock()
	ev := syscall.EpollEvent{Events: uint32(rdhup & 0xffffffff), Fd: int32(uint32(t)), Pad: int32(uint32(t >> 32))}
	if err := syscall.EpollCtl(h.epfd, syscall.EPOLL_CTL_ADD, fd, &ev); err != nil {
		h.remove(t)
		return 0, fmt.Errorf("epoll: %w", err)
	}
	return t, nil
}

// remove forgets a connection. The kernel takes a closed one out of the set by
// itself; one that net/http goes on with stays in it, to no effect.
func (h *hangups) remove(t hangupTicket) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.mu.conns, t)
}

// close ends the goroutine.
func (h *hangups) close() {
	h.file.Close()
	<-h.done
}
