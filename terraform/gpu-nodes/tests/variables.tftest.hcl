# What is refused, before anything is asked of AWS.
mock_provider "aws" {
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
}

variables {
  region       = "eu-central-1"
  cluster_name = "prod"
  subnet_ids   = ["subnet-1"]
}

run "what_has_no_gpu_or_no_room" {
  command = plan

  variables {
    ami_type              = "AL2023_x86_64_STANDARD"
    instance_types        = ["g6.2xlarge", "g4ad.xlarge"]
    volume_size_gib       = 100
    volume_throughput_mib = 2000
  }

  expect_failures = [var.ami_type, var.instance_types, var.volume_size_gib, var.volume_throughput_mib]
}

run "what_is_no_name_or_number" {
  command = plan

  variables {
    name          = "1"
    cluster_name  = "arn:aws:eks:eu-central-1:123456789012:cluster/prod"
    subnet_ids    = []
    capacity_type = "CHEAP"
    min_size      = -1
    addons        = { coredns = { configuration = "replicas: 2" } }
  }

  expect_failures = [var.name, var.cluster_name, var.subnet_ids, var.capacity_type, var.min_size, var.addons]
}

run "fewer_nodes_at_most_than_at_least" {
  command = plan

  variables {
    min_size = 3
    max_size = 2
  }

  expect_failures = [var.max_size]
}
