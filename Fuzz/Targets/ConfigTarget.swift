// The file of `vhost-swiftd serve`, and the sizes in it.

import ServiceConfig

enum ConfigTarget {
  static let target = FuzzTarget(
    name: "config", about: "the JSON configuration file, and sizes as people write them", longest: 4096
  ) { input in
    _ = ByteSize(String(decoding: input.prefix(32), as: UTF8.self))
    guard let devices = try? ConfigFile.devices(parsing: input, named: "input") else { return }
    for device in devices {
      for argument in device.arguments.dropFirst() where !argument.hasPrefix("--") {
        throw Defect("an argument that is no option: \(argument)")
      }
    }
  }
}
