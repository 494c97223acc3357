/* request.h: the 1 KiB chat request both client programs send, and a blocking connect. */
#ifndef REQUEST_H
#define REQUEST_H

#include "rig.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/time.h>

#define REQUEST_BODY_LEN 1024

struct request {
  char bytes[2048];
  size_t len;
  char *serial; /* ten digits in the prompt, so that no two prompts are equal */
};

static inline void request_build(struct request *r, const char *key, int stream) {
  char body[REQUEST_BODY_LEN + 1];
  static const char words[] = "how much water may a dam let through before the river below it floods and who decides ";
  int n = snprintf(body, sizeof body,
                   "{\"model\":\"bench\",%s\"max_tokens\":512,\"temperature\":0.7,\"messages\":[{\"role\":\"system\","
                   "\"content\":\"You are a helpful assistant.\"},{\"role\":\"user\",\"content\":\"serial 0000000000: ",
                   stream ? "\"stream\":true," : "");
  static const char tail[] = "\"}]}";
  size_t end = REQUEST_BODY_LEN - (sizeof tail - 1);
  for (size_t i = (size_t)n; i < end; i++) body[i] = words[(i - (size_t)n) % (sizeof words - 1)];
  memcpy(body + end, tail, sizeof tail);
  r->len = (size_t)snprintf(r->bytes, sizeof r->bytes,
                            "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: bench\r\nAccept: */*\r\n"
                            "Authorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
                            key, REQUEST_BODY_LEN, body);
  r->serial = strstr(r->bytes, "serial ") + 7;
}

static inline void request_number(struct request *r, uint64_t v) {
  for (int k = 9; k >= 0; k--, v /= 10) r->serial[k] = (char)('0' + v % 10);
}

/* dial connects to a port of 127.0.0.1, within 3 s; -1 when that fails. The socket is blocking. */
static inline int dial(int port) {
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  struct timeval wait = {3, 0};
  int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return -1;
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof wait);
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (connect(fd, (struct sockaddr *)&a, sizeof a) == 0) return fd;
  close(fd);
  return -1;
}

#endif
