// `vhost-swiftd rng`: entropy for a guest.

import ArgumentParser
import EntropyDevice

struct RngCommand: ServiceCommand {
  static let configuration = CommandConfiguration(
    commandName: "rng",
    abstract: "Serves random bytes as a virtio-rng device.",
    discussion: """
      QEMU:
        -chardev socket,id=c0,path=rng.sock -device vhost-user-rng-pci,chardev=c0
      """)

  @OptionGroup(title: "Service") var service: ServiceOptions

  func validate() throws {
    if service.numQueues ?? 1 != 1 { throw ValidationError("--num-queues: an rng has one queue") }
  }

  func makeService() throws -> Service {
    try Service(service, EntropyDevice(), watch: SizeWatch(onRequest: { false }))
  }
}
