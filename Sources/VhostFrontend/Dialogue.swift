// A whole dialogue, as an introduction. There is no code here.
//
// The short way, a disk:
//
//     let disk = try BlockDriver(path: "vm.sock", .with { $0.driver.queues = 2 })
//     try disk.write(sector: 8, [UInt8](repeating: 7, count: 4096))
//     try disk.flush()
//     let back = try disk.read(sector: 8, bytes: 4096, .crumbs.indirect, queue: 1)
//     try disk.stop()
//     disk.disconnect()
//
// The same message by message, as the front-end of a device nobody has written a driver for:
//
//     let front = try FrontendConnection.connect(to: "vm.sock", waiting: .seconds(5))
//     let offered = try front.getFeatures()
//     let features = offered & VirtioBits.driven
//     let protocolFeatures = try front.getProtocolFeatures() & (ProtocolBits.replyAck | ProtocolBits.mq)
//     try front.setProtocolFeatures(protocolFeatures).accepted(.setProtocolFeatures)
//     try front.setOwner().accepted(.setOwner)
//     try front.setFeatures(features).accepted(.setFeatures)
//
//     // Two regions with a hole between them, in one memfd; the user addresses of the table are other numbers.
//     let arena = try GuestArena(regions: [
//       ArenaRegion(at: 0x10_0000, bytes: 1 << 20),
//       ArenaRegion(at: 0x4000_0000, bytes: 1 << 20, fileOffset: 1 << 20),
//     ])
//     try front.setMemTable(arena.table, descriptors: arena.descriptors).accepted(.setMemTable)
//
//     let ring = DriverRingOptions(size: 128, eventIndex: features & VirtioBits.eventIndex != 0)
//     let queue = try QueueDriver(index: 0, ring, packed: false, in: arena)
//     try front.setVringNum(0, 128).accepted(.setVringNum)
//     try front.setVringBase(0, queue.ring.base).accepted(.setVringBase)
//     try front.setVringAddr(queue.address(in: arena)).accepted(.setVringAddr)
//     try front.setVringCall(0, queue.call).accepted(.setVringCall)
//     try front.setVringErr(0, queue.error).accepted(.setVringErr)
//     try front.setVringKick(0, queue.kick).accepted(.setVringKick)
//     try front.setVringEnable(0, true).accepted(.setVringEnable)
//
//     // 64 random bytes from a virtio-rng, with a guard around them.
//     let buffer = try arena.allocateGuarded(64)
//     let token = try queue.submit([DescriptorSpec(buffer, 64, write: true)])
//     let used = try queue.wait()          // used.token == token, used.length <= 64
//     let bytes = try arena.read(at: buffer, count: Int(used.length))
//     // try arena.damagedGuards() is empty
//
//     let base = try front.getVringBase(0)   // 1: one chain was taken
//     front.disconnect()
//
// `DeviceDriver` says all this in `connect`, `start` and `stop`, in the manner of a chosen front-end
// (`Habit`).
//
// What no honest front-end does, to see a back-end keep its nerve:
//
//     try front.sendRaw(request: 200, flags: 0x9, size: 4, payload: [1, 2, 3, 4])
//     try front.sendByteByByte(FrontendConnection.encode(.getFeatures))
//     queue.ring.withSplit { $0.rawSetDescriptor(0, address: 0, length: 1, flags: 1, next: 0) }
//     try front.expectClosed()
