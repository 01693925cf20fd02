/* Connects and sends by io_uring, without a call of connect(2) or send(2): ADDRESS PORT TEXT. Prints the answer. */
#include <arpa/inet.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static struct io_uring_params params;
static int ring;
static char *submitted, *completed;
static struct io_uring_sqe *entries;

static int run(unsigned char operation, int fd, void *address, unsigned length, unsigned long long offset)
{
	unsigned *tail = (unsigned *)(submitted + params.sq_off.tail);
	unsigned mask = *(unsigned *)(submitted + params.sq_off.ring_mask);
	unsigned *head = (unsigned *)(completed + params.cq_off.head);
	struct io_uring_cqe *results = (void *)(completed + params.cq_off.cqes);
	unsigned slot = *tail & mask;
	int result;

	memset(&entries[slot], 0, sizeof entries[slot]);
	entries[slot].opcode = operation;
	entries[slot].fd = fd;
	entries[slot].addr = (unsigned long long)address;
	entries[slot].len = length;
	entries[slot].off = offset;
	((unsigned *)(submitted + params.sq_off.array))[slot] = slot;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0) {
		perror("io_uring_enter");
		exit(1);
	}
	result = results[*head & *(unsigned *)(completed + params.cq_off.ring_mask)].res;
	__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
	return result;
}

int main(int count, char **arguments)
{
	struct sockaddr_in to = { .sin_family = AF_INET };
	char answer[512];
	int fd, result;

	if (count != 4 || inet_pton(AF_INET, arguments[1], &to.sin_addr) != 1)
		return 2;
	to.sin_port = htons(atoi(arguments[2]));
	ring = syscall(SYS_io_uring_setup, 4, &params);
	if (ring < 0) {
		puts("no io_uring");
		return 0;
	}
	submitted = mmap(0, params.sq_off.array + params.sq_entries * sizeof(unsigned), PROT_READ | PROT_WRITE,
			 MAP_SHARED, ring, IORING_OFF_SQ_RING);
	completed = mmap(0, params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe),
			 PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_CQ_RING);
	entries = mmap(0, params.sq_entries * sizeof *entries, PROT_READ | PROT_WRITE, MAP_SHARED, ring,
		       IORING_OFF_SQES);
	fd = socket(AF_INET, SOCK_STREAM, 0);
	result = run(IORING_OP_CONNECT, fd, &to, 0, sizeof to);
	if (result < 0) {
		printf("connect: %s\n", strerror(-result));
		return 1;
	}
	result = run(IORING_OP_SEND, fd, arguments[3], strlen(arguments[3]), 0);
	if (result > 0)
		result = run(IORING_OP_RECV, fd, answer, sizeof answer, 0);
	if (result < 0) {
		printf("send or receive: %s\n", strerror(-result));
		return 1;
	}
	printf("%.*s\n", result, answer);
	return 0;
}
