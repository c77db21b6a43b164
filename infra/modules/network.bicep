// A network of our own: the apps' subnet, PostgreSQL's, and one for private endpoints, each with the rules it needs.

@description('Region.')
param location string

@description('Tags of every resource.')
param tags object

var suffix = uniqueString(resourceGroup().id)

// https://learn.microsoft.com/azure/templates/microsoft.network/2025-05-01/networksecuritygroups
resource appsRules 'Microsoft.Network/networkSecurityGroups@2025-05-01' = {
  name: 'nsg-apps-${suffix}'
  location: location
  tags: tags
  properties: {
    securityRules: [
      {
        name: 'AllowHttpsFromAnywhere'
        properties: {
          // https://learn.microsoft.com/azure/container-apps/firewall-integration: 31443 is where the edge proxy answers.
          description: 'Browsers, by TLS; the load balancer\'s probes are allowed by default'
          priority: 100
          direction: 'Inbound'
          access: 'Allow'
          protocol: 'Tcp'
          sourceAddressPrefix: 'Internet'
          sourcePortRange: '*'
          destinationAddressPrefix: '*'
          destinationPortRanges: [
            '443'
            '31443'
          ]
        }
      }
    ]
  }
}

// https://learn.microsoft.com/azure/templates/microsoft.network/2025-05-01/networksecuritygroups
resource innerRules 'Microsoft.Network/networkSecurityGroups@2025-05-01' = {
  name: 'nsg-inner-${suffix}'
  location: location
  tags: tags
  // The default rules are what is wanted: in from this network, nothing from outside.
  properties: {}
}

// https://learn.microsoft.com/azure/templates/microsoft.network/2025-05-01/virtualnetworks
resource network 'Microsoft.Network/virtualNetworks@2025-05-01' = {
  name: 'vnet-${suffix}'
  location: location
  tags: tags
  properties: {
    addressSpace: {
      addressPrefixes: [
        '10.20.0.0/16'
      ]
    }
    subnets: [
      {
        name: 'apps'
        properties: {
          // Ten replicas share an address, and an update doubles them: 500 addresses are enough for 2,000 replicas.
          addressPrefix: '10.20.0.0/23'
          networkSecurityGroup: {
            id: appsRules.id
          }
          delegations: [
            {
              name: 'container-apps'
              properties: {
                serviceName: 'Microsoft.App/environments'
              }
            }
          ]
        }
      }
      {
        name: 'database'
        properties: {
          addressPrefix: '10.20.2.0/27'
          networkSecurityGroup: {
            id: innerRules.id
          }
          delegations: [
            {
              name: 'postgresql'
              properties: {
                serviceName: 'Microsoft.DBforPostgreSQL/flexibleServers'
              }
            }
          ]
        }
      }
      {
        name: 'endpoints'
        properties: {
          addressPrefix: '10.20.2.32/27'
          networkSecurityGroup: {
            id: innerRules.id
          }
        }
      }
    ]
  }
}

// https://learn.microsoft.com/azure/templates/microsoft.network/2024-06-01/privatednszones
resource databaseDnsZone 'Microsoft.Network/privateDnsZones@2024-06-01' = {
  name: 'token-broker-${suffix}.private.postgres.database.azure.com'
  location: 'global'
  tags: tags
}

// https://learn.microsoft.com/azure/templates/microsoft.network/2024-06-01/privatednszones/virtualnetworklinks
resource databaseDnsLink 'Microsoft.Network/privateDnsZones/virtualNetworkLinks@2024-06-01' = {
  parent: databaseDnsZone
  name: 'network'
  location: 'global'
  tags: tags
  properties: {
    registrationEnabled: false
    virtualNetwork: {
      id: network.id
    }
  }
}

// https://learn.microsoft.com/azure/templates/microsoft.network/2024-06-01/privatednszones
resource vaultDnsZone 'Microsoft.Network/privateDnsZones@2024-06-01' = {
  // The name that Azure's own resolvers point a vault's host name to.
  name: 'privatelink.vaultcore.azure.net'
  location: 'global'
  tags: tags
}

// https://learn.microsoft.com/azure/templates/microsoft.network/2024-06-01/privatednszones/virtualnetworklinks
resource vaultDnsLink 'Microsoft.Network/privateDnsZones/virtualNetworkLinks@2024-06-01' = {
  parent: vaultDnsZone
  name: 'network'
  location: 'global'
  tags: tags
  properties: {
    registrationEnabled: false
    virtualNetwork: {
      id: network.id
    }
  }
}

@description('Subnet of the Container Apps environment.')
output appsSubnetId string = '${network.id}/subnets/apps'

@description('Subnet that PostgreSQL is put into.')
output databaseSubnetId string = '${network.id}/subnets/database'

@description('Subnet of private endpoints.')
output endpointsSubnetId string = '${network.id}/subnets/endpoints'

@description('Zone of PostgreSQL\'s name.')
output databaseDnsZoneId string = databaseDnsZone.id

@description('Zone of the vault\'s private name.')
output vaultDnsZoneId string = vaultDnsZone.id
